"""Open files of the store, and opening and reading them only when that cannot block the loop."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

_OPENAT2 = 437  # the same number on every architecture (linux/unistd.h)
_RESOLVE_CACHED = 0x20  # linux/openat2.h, Linux 5.12: EAGAIN instead of waiting for the disk
_AT_FDCWD = -100
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_HOW = struct.pack("=QQQ", _FLAGS, 0, _RESOLVE_CACHED)

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_syscall.restype = ctypes.c_long


class OpenFile:
    """A file open for reading, closed when its last holder lets go (CPython counts references).

    ``size`` and ``modified`` (Unix seconds) are those at opening.
    """

    __slots__ = ("fd", "modified", "size")

    def __init__(self, fd: int, size: int | None = None) -> None:
        self.fd = fd
        status = os.fstat(fd)
        self.size = status.st_size if size is None else size
        self.modified = status.st_mtime

    def __del__(self) -> None:
        os.close(self.fd)

    def read(self) -> bytes:
        """All of it; may block."""
        return os.pread(self.fd, self.size, 0)


class WouldBlock(Exception):
    """The answer is not in the kernel's caches: ask again in a thread."""


def open_cached(path: Path | str) -> OpenFile | None:
    """Open without waiting for a disk; None when it does not exist. Raises WouldBlock."""
    fd = _syscall(_OPENAT2, _AT_FDCWD, os.fsencode(path), _HOW, len(_HOW))
    if fd >= 0:
        return OpenFile(fd)
    code = ctypes.get_errno()
    if code == errno.ENOENT:
        return None
    raise WouldBlock  # EAGAIN, or a kernel without openat2 or RESOLVE_CACHED: the thread will know


def open_file(path: Path | str) -> OpenFile | None:
    """Open; None when it does not exist. May block."""
    try:
        return OpenFile(os.open(path, _FLAGS))
    except FileNotFoundError:
        return None


_probe = bytearray(1)


def in_page_cache(fd: int, offset: int) -> bool:
    """Whether the byte at ``offset`` can be read without waiting for a disk."""
    try:
        os.preadv(fd, (_probe,), offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in (errno.EOPNOTSUPP, errno.EINVAL)  # cannot tell: then it is memory (tmpfs)
    return True


def read_ahead(fd: int, offset: int, length: int) -> None:
    """Bring a piece into the page cache; blocks, so call it in a thread."""
    os.pread(fd, length, offset)
