"""Files that appear whole or not at all: temporaries in the target's own directory, then one atomic step."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from collections.abc import Mapping

from edged.accounts import tree
from edged.accounts.api import Entry
from edged.accounts.beneath import CREATE, DIRECTORY, READ, regular
from edged.accounts.entries import entry
from edged.accounts.rules import TEMPORARY_PREFIX, is_temporary, parent
from edged.errors import BadRequest, Conflict

_SYS_RENAMEAT2 = 316 if os.uname().machine == "x86_64" else 276  # asm-generic, arm64
_NOREPLACE = 1
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # NFS and some others know no NOREPLACE


def temporary(root: int, target: str, *, parents: bool, mode: int = 0) -> tuple[int, str]:
    """An empty invisible file beside ``target``: descriptor and path. ``mode`` 0: as the umask has it.

    Raises OSError, BadRequest.
    """
    if not target or is_temporary(target):
        raise BadRequest("not a name for a file")
    above = parent(target)
    if parents and above:
        tree.make(root, above, parents=True)
    name = TEMPORARY_PREFIX + secrets.token_hex(12)
    path = f"{above}/{name}" if above else name
    fd = CREATE.open(root, os.fsencode(path))
    if mode:
        os.fchmod(fd, mode)
    return fd, path


def commit(
    root: int,
    source: str,
    target: str,
    *,
    replace: bool,
    durable: bool,
    attributes: Mapping[str, bytes] | None,
    mtime_ns: int | None,
) -> Entry:
    """The temporary becomes ``target``. Raises Conflict, OSError; then the temporary is still there."""
    if not is_temporary(source) or is_temporary(target) or not target or parent(source) != parent(target):
        raise BadRequest("commit joins a temporary and a name in the same directory")
    old, new = source.rpartition("/")[2], target.rpartition("/")[2]
    with tree.opened(DIRECTORY, root, parent(source)) as directory:
        fd = READ.open(directory, os.fsencode(old))
        regular(fd)
        try:
            for name, value in (attributes or {}).items():
                os.setxattr(fd, f"user.{name}", value)
            if mtime_ns is not None:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            if durable:
                os.fsync(fd)
            move(directory, old, directory, new, replace=replace)
            if durable:
                os.fsync(directory)
            return entry(new, os.fstat(fd))
        finally:
            os.close(fd)


def move(source_fd: int, source: str, target_fd: int, target: str, *, replace: bool) -> None:
    """Rename; without ``replace`` atomically only if ``target`` is free. Raises OSError (EEXIST)."""
    if replace:
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        return
    old, new = os.fsencode(source), os.fsencode(target)
    if _syscall(_SYS_RENAMEAT2, source_fd, old, target_fd, new, _NOREPLACE) == 0:
        return
    number = ctypes.get_errno()
    if number not in _NOT_HERE:
        raise OSError(number, os.strerror(number))
    try:
        os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
    except PermissionError as error:  # directories cannot be linked, some file systems link nothing
        raise Conflict("not possible on this file system without replacing", detail=str(error)) from error
    os.unlink(source, dir_fd=source_fd)
