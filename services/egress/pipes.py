"""Pooled kernel pipes: what splice(2) needs between two sockets."""

from __future__ import annotations

import fcntl
import os
from collections import deque

# A pipe of 1 MiB takes a quarter less CPU per byte than one of 256 KiB (tests/bench/egress_proxy.py).
# An unprivileged user has pipe-user-pages-soft = 16384 pages, 64 MiB, for all pipes together: so some
# are large, the others keep the kernel's default of 64 KiB, and none falls to the two pages that are
# left to those above that limit.
LARGE_BYTES = 1 << 20
MOST_LARGE = 48


class Pipe:
    """Both ends, and how many bytes are between them."""

    __slots__ = ("held", "large", "read_fd", "write_fd")

    def __init__(self, *, large: bool) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        self.large = large
        if large:
            try:
                fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, LARGE_BYTES)
            except OSError:  # other programs of this user hold pipes too: a small one is as right
                return

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class Pipes:
    """At most ``limit`` pipes; an empty one goes back to be used again, large ones first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: deque[Pipe] = deque()
        self._large = 0
        self.made = 0

    def take(self) -> Pipe | None:
        """A pipe, or None when all are in use: then bytes are copied, which is slower and no less right."""
        if self._free:
            return self._free.pop()
        if self.made >= self._limit:
            return None
        large = self._large < MOST_LARGE
        try:
            pipe = Pipe(large=large)
        except OSError:  # no descriptors left
            return None
        self.made += 1
        self._large += large
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Return a pipe; one with bytes left in it is thrown away, never handed to a stranger."""
        if pipe.held:
            self._drop(pipe)
        elif pipe.large:
            self._free.append(pipe)
        else:
            self._free.appendleft(pipe)

    def close(self) -> None:
        """Close the free ones."""
        while self._free:
            self._drop(self._free.pop())

    def _drop(self, pipe: Pipe) -> None:
        pipe.close()
        self.made -= 1
        self._large -= pipe.large
