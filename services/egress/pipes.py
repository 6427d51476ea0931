"""Pooled kernel pipes: what splice(2) needs between two sockets."""

from __future__ import annotations

import fcntl
import os

# With 32 KiB socket buffer fragments, 64 slots already hold 2 MiB: larger pipes gained nothing
# measurable and would reach pipe-user-pages-soft (16384 pages an unprivileged user) four times sooner.
PIPE_BYTES = 256 * 1024


class Pipe:
    """Both ends, and how many bytes are between them."""

    __slots__ = ("held", "read_fd", "write_fd")

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        try:
            fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # over the user's soft limit: the kernel's default size works too, slower
            return

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class Pipes:
    """At most ``limit`` pipes; an empty one goes back to be used again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: list[Pipe] = []
        self.made = 0

    def take(self) -> Pipe | None:
        """A pipe, or None when all are in use: then bytes are copied, which is slower and no less right."""
        if self._free:
            return self._free.pop()
        if self.made >= self._limit:
            return None
        try:
            pipe = Pipe()
        except OSError:  # no descriptors left
            return None
        self.made += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Return a pipe; one with bytes left in it is thrown away, never handed to a stranger."""
        if pipe.held:
            pipe.close()
            self.made -= 1
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close the free ones."""
        for pipe in self._free:
            pipe.close()
        self.made -= len(self._free)
        self._free.clear()
