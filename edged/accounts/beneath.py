"""Opening files beneath a directory, where the kernel refuses every way out: openat2(2).

RESOLVE_BENEATH stops ``..``, absolute paths and symbolic links that leave the root;
RESOLVE_NO_MAGICLINKS stops /proc's links. Source: openat2(2), linux/openat2.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import time

from edged.errors import Conflict

_SYS_OPENAT2 = 437  # the same number on every architecture
_NO_MAGICLINKS = 0x02
_BENEATH = 0x08
_NO_XDEV = 0x01
_TRIES = 64
_ROOT_S = 1.0


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_SIZE = ctypes.sizeof(_How)
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t)
_syscall.restype = ctypes.c_long


class Beneath:
    """One fixed way of opening: flags, mode and resolution. Made once, used for every call."""

    __slots__ = ("_how", "_pointer")

    def __init__(self, flags: int, mode: int = 0, *, one_file_system: bool = False) -> None:
        resolve = _BENEATH | _NO_MAGICLINKS | (_NO_XDEV if one_file_system else 0)
        self._how = _How(flags | os.O_CLOEXEC, mode, resolve)
        self._pointer = ctypes.pointer(self._how)

    def open(self, root: int, path: bytes) -> int:
        """A descriptor for ``path`` below the directory ``root``. Raises OSError.

        EAGAIN means that a rename raced with the look-up (or a lease is being broken): asked again,
        a bounded number of times.
        """
        for _ in range(_TRIES):
            fd: int = _syscall(_SYS_OPENAT2, root, path or b".", self._pointer, _SIZE)
            if fd >= 0:
                return fd
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR):
                raise OSError(number, os.strerror(number))
        raise BlockingIOError(errno.EAGAIN, "path keeps changing")


READ = Beneath(os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
WRITE = Beneath(os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_APPEND | os.O_NOFOLLOW)
CREATE = Beneath(os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
LOOK = Beneath(os.O_PATH)
LOOK_LINK = Beneath(os.O_PATH | os.O_NOFOLLOW)
DIRECTORY = Beneath(os.O_RDONLY | os.O_DIRECTORY)
INTO = Beneath(os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, one_file_system=True)


def regular(fd: int) -> os.stat_result:
    """The facts of a regular file. Closes ``fd`` and raises Conflict for anything else."""
    facts = os.fstat(fd)
    if stat.S_ISREG(facts.st_mode):
        return facts
    os.close(fd)
    if stat.S_ISDIR(facts.st_mode):
        raise Conflict("it is a directory")
    raise Conflict("not a regular file")


def missing_kernel_support() -> list[str]:
    """What this kernel lacks, in words for the operator; ``edged check`` prints it."""
    try:
        root = Root("/", 0.0)
        os.close(LOOK.open(root.fd, b""))
    except OSError as error:
        return [f"accounts: the kernel has no openat2 ({error.strerror}); Linux 5.6 or newer is needed"]
    return []


class Root:
    """An open directory, closed when nobody uses it any more."""

    __slots__ = ("fd", "until")

    def __init__(self, path: str, now: float) -> None:
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.until = now + _ROOT_S

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Roots:
    """The open roots of exports, looked up again every second: a file system mounted later must be seen."""

    def __init__(self) -> None:
        self._open: dict[str, Root] = {}
        self._lock = threading.Lock()

    def get(self, path: str) -> Root:
        """The root at ``path``; keep the object as long as its ``fd`` is used. Raises OSError."""
        now = time.monotonic()
        found = self._open.get(path)
        if found is not None and found.until > now:
            return found
        found = Root(path, now)
        with self._lock:
            self._open[path] = found
        return found
