"""Coming down to one capability, and proving it (capabilities(7))."""

from __future__ import annotations

import ctypes
import os
import pwd
from pathlib import Path

from edged.errors import Unavailable

NET_ADMIN = 12
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 8, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_WANTED = 1 << NET_ADMIN


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def keep_only_net_admin(user: str) -> int:
    """Become ``user`` ('' stays who we are) with CAP_NET_ADMIN and nothing else; returns the user id.

    Raises Unavailable when the capability is missing or anything more is left.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
    for number in range(_last_capability() + 1):
        if number != NET_ADMIN:  # fails without CAP_SETPCAP, which then is not held either
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    if user:
        account = pwd.getpwnam(user)
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)(_Data(_WANTED, _WANTED, 0), _Data(0, 0, 0))
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise Unavailable("CAP_NET_ADMIN is missing", detail=os.strerror(ctypes.get_errno()))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _prove()
    return os.getuid()


def _prove() -> None:
    lines = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held = {name: int(lines[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")}
    if held != {"CapEff": _WANTED, "CapPrm": _WANTED, "CapInh": 0, "CapAmb": 0}:
        raise Unavailable("capabilities are not exactly CAP_NET_ADMIN", detail=str(held))


def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
