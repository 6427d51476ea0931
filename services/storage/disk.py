"""Blocking file calls of one export: tried without waiting first, else in the export's own threads.

A hung file server fills the threads of its export and nothing else: on a file system that is not known to
be this machine's own, no call that could wait is made by the loop, be it only fstat or close.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from edged.accounts import statx
from edged.errors import Conflict

BLOCK = 64 * 1024  # TLS writes of this size are cheapest (1 MiB costs 40 % more: cache misses)
AHEAD = 1 << 20  # read in a thread at once, when the page cache cannot answer
WINDOW = 4 << 20  # bytes handed to one sendfile

# f_type of statfs(2) for file systems on local disks or in memory (linux/magic.h)
_LOCAL = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630, 0x2FC12FC1, 0xF2F52010})

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """The threads of one export.

    A descriptor given to a thread stays open until the thread is done with it, even when the request that
    sent it there was cancelled: its number must not come to mean another file meanwhile. So whoever reads
    and writes through a Disk also closes through it.
    """

    def __init__(self, label: str, threads: int) -> None:
        self.label = label
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"disk-{label}")
        self._nowait = True  # until the file system says that it cannot
        self._local: dict[tuple[int, int], bool] = {}  # by device: an export may have others mounted in it
        self._lock = threading.Lock()
        self._used: Counter[int] = Counter()  # descriptors in threads
        self._closing: set[int] = set()
        self._quick = 0
        self._since = 0.0  # when a thread last came back, or the first of those running was sent

    def shutdown(self) -> None:
        """Threads that hang on a dead server are left behind: the process is ending anyway."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def silent_s(self) -> float:
        """For how long no call has come back; 0 when none is under way."""
        return time.monotonic() - self._since if self._quick else 0.0

    async def run(self, fds: tuple[int, ...], call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``call``, which a healthy file system answers soon, in a thread; it uses the descriptors ``fds``."""
        if not self._quick:
            self._since = time.monotonic()
        return await asyncio.wrap_future(self._submit(fds, 1, call, *args, **kwargs))

    async def compute(
        self, fds: tuple[int, ...], call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The same for a call that may take minutes."""
        return await asyncio.wrap_future(self._submit(fds, 0, call, *args, **kwargs))

    def _submit(
        self, fds: tuple[int, ...], quick: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        with self._lock:
            self._quick += quick
            self._used.update(fds)
        done = self._threads.submit(call, *args, **kwargs)
        done.add_done_callback(lambda _: self._came_back(fds, quick))
        return done

    def _came_back(self, fds: tuple[int, ...], quick: int) -> None:
        """In the thread, or on the loop when the call was cancelled before it began."""
        with self._lock:
            self._quick -= quick
            self._since = time.monotonic()
            self._used.subtract(fds)
            free = [fd for fd in fds if not self._used[fd]]
            for fd in free:
                del self._used[fd]
            ended = self._closing.intersection(free)
            self._closing -= ended
        for fd in ended:
            os.close(fd)

    async def is_local(self, fd: int) -> bool:
        """Whether calls on this file never wait for a server."""
        facts = statx.known(fd)
        if facts is None:
            return False
        local = self._local.get(facts.device)
        if local is None:
            local = await self.run((fd,), self._learn, facts.device, fd)
        return local

    def _learn(self, device: tuple[int, int], fd: int) -> bool:
        """For a thread."""
        local = self._local[device] = _lies_on_local_disk(fd)
        return local

    def _learn_and_close(self, device: tuple[int, int], fd: int) -> None:
        self._learn(device, fd)
        os.close(fd)

    async def unchanged(self, fd: int, size: int, mtime_ns: int) -> bool:
        """Whether an open file still is what its headers said."""
        facts = os.fstat(fd) if await self.is_local(fd) else await self.run((fd,), os.fstat, fd)
        return facts.st_size == size and facts.st_mtime_ns == mtime_ns

    def close(self, fd: int) -> None:
        """Close a file or socket, by whoever uses it last. Nobody waits for what a file server may say."""
        with self._lock:
            if self._used.get(fd):
                self._closing.add(fd)
                return
        facts = statx.known(fd)
        if facts is None or not facts.regular or self._local.get(facts.device):
            os.close(fd)
        else:
            self._submit((), 1, self._learn_and_close, facts.device, fd)

    async def read(self, fd: int, length: int, offset: int) -> bytearray:
        """``length`` bytes, fewer only at the end of the file. Page cache first: no thread, no wait."""
        data = self.read_cached(fd, length, offset)
        if data is not None and len(data) == length:
            return data
        got = len(data) if data is not None else 0
        rest = await self.run((fd,), _read_fully, fd, length - got, offset + got)
        return data + rest if data else rest

    def read_cached(self, fd: int, length: int, offset: int) -> bytearray | None:
        """What the page cache has of it, or None."""
        if not self._nowait:
            return None
        buffer = bytearray(length)
        try:
            got = os.preadv(fd, (buffer,), offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            self._nowait = False  # GPFS and others: every read goes through the threads
            return None
        if got < length:
            del buffer[got:]
        return buffer

    def resident(self, fd: int, offset: int, length: int) -> bool:
        """Whether a window is probably in the page cache: its first, middle and last byte are."""
        last = offset + length - 1
        return all(self.read_cached(fd, 1, at) for at in (offset, offset + length // 2, last))


def _lies_on_local_disk(fd: int) -> bool:
    """For a thread: statfs may wait for the server."""
    facts = (ctypes.c_long * 32)()  # struct statfs begins with f_type
    return ctypes.CDLL(None).fstatfs(fd, facts) == 0 and facts[0] & 0xFFFFFFFF in _LOCAL


def _read_fully(fd: int, length: int, offset: int) -> bytearray:
    buffer = bytearray(length)
    view = memoryview(buffer)
    got = 0
    while got < length:
        count = os.preadv(fd, (view[got:],), offset + got)
        if count == 0:
            break
        got += count
    view.release()
    del buffer[got:]
    return buffer


class Truncated(Conflict):
    """The file became shorter, or was changed, while it was read: the answer is broken off, not padded."""

    code = "changed-while-read"
