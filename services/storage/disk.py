"""Blocking file calls of one export: tried without waiting first, else in the export's own threads.

A hung file server fills the threads of its export and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from edged.errors import Conflict

BLOCK = 64 * 1024  # TLS writes of this size are cheapest (1 MiB costs 40 % more: cache misses)
AHEAD = 1 << 20  # read in a thread at once, when the page cache cannot answer
WINDOW = 4 << 20  # bytes handed to one sendfile

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """The threads of one export."""

    def __init__(self, label: str, threads: int) -> None:
        self.label = label
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"disk-{label}")
        self._nowait = True  # until the file system says that it cannot

    def close(self) -> None:
        """Threads that hang on a dead server are left behind: the process is ending anyway."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``call`` in a thread of this export."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: call(*args, **kwargs))

    async def read(self, fd: int, length: int, offset: int) -> bytearray:
        """``length`` bytes, fewer only at the end of the file. Page cache first: no thread, no wait."""
        data = self.read_cached(fd, length, offset)
        if data is not None and len(data) == length:
            return data
        got = len(data) if data is not None else 0
        rest = await self.run(_read_fully, fd, length - got, offset + got)
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


def unchanged(fd: int, size: int, mtime_ns: int) -> bool:
    """Whether an open file still is what its headers said."""
    facts = os.fstat(fd)
    return facts.st_size == size and facts.st_mtime_ns == mtime_ns
