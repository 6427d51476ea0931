"""What the kernel knows of an open file without asking a file server: statx(2) with AT_STATX_DONT_SYNC.

For the one loop of a front (not threads): fstat on a network file system may wait for its server.
Source: statx(2), linux/stat.h.
"""

from __future__ import annotations

import ctypes
import stat
import struct
from typing import NamedTuple

_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_TYPE_AND_INODE = 0x1 | 0x100
_facts = bytearray(256)  # struct statx
_pointer = (ctypes.c_char * 256).from_buffer(_facts)
_FIELDS = struct.Struct("=28xH2xQ96xII112x")  # stx_mode, stx_ino, stx_dev_major, stx_dev_minor
_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


class Known(NamedTuple):
    """Facts that never change while a file is open."""

    regular: bool
    inode: int
    device: tuple[int, int]


def known(fd: int) -> Known | None:
    """None when it is no file, or the kernel cannot tell."""
    if _libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _TYPE_AND_INODE, _pointer) != 0:
        return None
    mode, inode, major, minor = _FIELDS.unpack(_facts)
    return Known(stat.S_ISREG(mode), inode, (major, minor))
