"""Becoming an account for good, and proving it. Sources: capabilities(7), prctl(2), credentials(7).

A unit that runs accountd needs CAP_SETUID, CAP_SETGID, CAP_SETPCAP (to empty the bounding set) and, to
make session directories, CAP_CHOWN and CAP_DAC_OVERRIDE.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
EXIT_UNPROVEN = 70  # EX_SOFTWARE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)


@dataclass(frozen=True, slots=True)
class Account:
    """A local account as the system's database knows it. ``groups`` as initgroups(3) would set them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def become(account: Account) -> None:
    """Be ``account`` and nothing else, for ever; ends the process if that cannot be proven.

    The bounding set goes first, while CAP_SETPCAP is still held.
    """
    try:
        if account.uid == 0 or account.gid == 0 or 0 in account.groups:
            _unproven("an account with uid or gid 0")
        _drop_bounding_set()
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        _drop_held_sets()
        harden()
        prove(account)
    except OSError as error:
        _unproven(str(error))


def harden() -> None:
    """No new privileges by any execve, and no tracing by others of the same account."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)


def prove(account: Account) -> None:
    """End the process unless it is ``account`` alone: ids, groups, capabilities, and no way back to root."""
    status = _status()
    ids = (str(account.uid),) * 4, (str(account.gid),) * 4
    if (tuple(status["Uid"].split()), tuple(status["Gid"].split())) != ids:
        _unproven("ids differ")
    if {int(group) for group in status["Groups"].split()} - {account.gid} != set(account.groups) - {
        account.gid
    }:
        _unproven("supplementary groups differ")
    for held in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        if int(status[held], 16) != 0:
            _unproven(f"{held} is not empty")
    if status["NoNewPrivs"] != "1":
        _unproven("new privileges are possible")
    for attempt in (lambda: os.setresuid(0, 0, 0), lambda: os.setresgid(0, 0, 0), lambda: os.setgroups([0])):
        _must_fail(attempt)


def die_with_parent(signal_number: int) -> None:
    """Get ``signal_number`` when the parent thread ends. Call after changing ids: that clears it."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def name_process(name: str) -> None:
    """The name that ps and top show; 15 bytes of it."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def _drop_bounding_set() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    for capability in range(last + 1):
        _prctl(_PR_CAPBSET_DROP, capability)


def _drop_held_sets() -> None:
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _must_fail(attempt: Callable[[], None]) -> None:
    try:
        attempt()
    except PermissionError:
        return
    _unproven("could become root again")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _unproven(why: str) -> NoReturn:
    print(f"edged worker: not safely the account: {why}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(EXIT_UNPROVEN)
