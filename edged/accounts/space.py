"""Space as the account sees it: the file system's, or its quota where that is tighter.

Source: statvfs(3), quotactl_fd(2) (Linux 5.14), linux/quota.h. A project's quota already shows in
statvfs (XFS, ext4); Lustre and NFS have no quotactl_fd, there statvfs answers alone.
"""

from __future__ import annotations

import ctypes
import os

from edged.accounts.api import Space

_SYS_QUOTACTL_FD = 443
_Q_GETQUOTA = 0x800007
_USER, _GROUP = 0, 1
_BLOCK = 1024  # limits are in blocks of this many bytes; usage is in bytes


class _Quota(ctypes.Structure):
    """struct if_dqblk."""

    _fields_ = [
        ("block_hard", ctypes.c_uint64),
        ("block_soft", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
        ("inode_hard", ctypes.c_uint64),
        ("inode_soft", ctypes.c_uint64),
        ("inodes", ctypes.c_uint64),
        ("block_time", ctypes.c_uint64),
        ("inode_time", ctypes.c_uint64),
        ("valid", ctypes.c_uint32),
    ]


_syscall = ctypes.CDLL(None, use_errno=True).syscall


def space(fd: int) -> Space:
    """For the file system that the open directory ``fd`` lies on. Raises OSError."""
    system = os.statvfs(fd)
    total, free = system.f_blocks * system.f_frsize, system.f_bavail * system.f_frsize
    found = Space(
        total=total,
        used=total - system.f_bfree * system.f_frsize,
        available=free,
        files_total=system.f_files,
        files_used=system.f_files - system.f_ffree,
    )
    for kind, number in ((_USER, os.geteuid()), (_GROUP, os.getegid())):
        found = _tighter(found, _quota(fd, kind, number))
    return found


def _quota(fd: int, kind: int, number: int) -> _Quota | None:
    """None where there is none to be asked."""
    quota = _Quota()
    command = ctypes.c_uint((_Q_GETQUOTA << 8) | kind)
    failed = _syscall(_SYS_QUOTACTL_FD, ctypes.c_uint(fd), command, ctypes.c_int(number), ctypes.byref(quota))
    return None if failed else quota


def _tighter(space: Space, quota: _Quota | None) -> Space:
    """``space`` within the limits of ``quota``; a limit of 0 is none. The soft limit ends in the hard one."""
    if quota is None:
        return space
    limit = (quota.block_hard or quota.block_soft) * _BLOCK
    inodes = quota.inode_hard or quota.inode_soft
    if limit and max(limit - quota.used, 0) < space.available:
        left = max(limit - quota.used, 0)
        space = Space(limit, quota.used, left, space.files_total, space.files_used)
    if inodes and inodes < space.files_total:
        space = Space(space.total, space.used, space.available, inodes, quota.inodes)
    return space
