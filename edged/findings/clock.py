"""The clock: tokens are dated, so a wrong one refuses good tokens or takes expired ones."""

from __future__ import annotations

import ctypes

from edged.config import Config
from edged.doctor import Finding

PART = "clock"
WIDE_S = 1.0
_UNSYNCHRONISED = 5  # TIME_ERROR, ntp_adjtime(2)


class _NtpTime(ctypes.Structure):
    """struct ntptimeval of <sys/timex.h>."""

    _fields_ = [
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("tai", ctypes.c_long),
        ("reserved", ctypes.c_long * 4),
    ]


async def findings(_config: Config) -> list[Finding]:
    """What the kernel knows of its clock's discipline."""
    told = _NtpTime()
    state = ctypes.CDLL(None, use_errno=True).ntp_gettimex(ctypes.byref(told))
    return [judged(state, told.maxerror / 1e6)]


def judged(state: int, error_s: float) -> Finding:
    """``state``: what ntp_gettimex returned; ``error_s``: the kernel's bound of the clock's error."""
    if state < 0 or state == _UNSYNCHRONISED:
        return Finding(
            PART, False, "not synchronised", "run chronyd or systemd-timesyncd and let it reach a server"
        )
    if error_s > WIDE_S:
        return Finding(
            PART, False, f"may be wrong by {error_s:.1f} s", "look at the time server: chronyc tracking"
        )
    return Finding(PART, True, f"synchronised, within {error_s * 1000:.0f} ms")
