"""Spans of time as the job languages write them. Pure; all answers in seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edged.errors import BadRequest

_UNITS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_UNITS |= {"d": 86400, "day": 86400, "w": 604800, "week": 604800}
_SPAN = re.compile(r"\s*(\d{1,12})\s*([a-z]*)\s*,?", re.IGNORECASE)
_N = r"(\d{1,9})"
_PERIOD = re.compile(
    rf"P(?:{_N}Y)?(?:{_N}M)?(?:{_N}W)?(?:{_N}D)?(?:T(?:{_N}H)?(?:{_N}M)?(?:{_N}(?:\.\d+)?S)?)?"
)
_PERIOD_S = (365 * 86400, 30 * 86400, 604800, 86400, 3600, 60, 1)


def seconds(words: Sequence[str], unit_s: int) -> int:
    """``90``, ``2 hours``, ``1 hour 30 minutes``, ``PT1H30M``; a bare number counts ``unit_s`` each."""
    text = " ".join(words).strip()
    if text[:1] == "P":
        return period(text)
    total, position = 0, 0
    while position < len(text):
        match = _SPAN.match(text, position)
        if match is None:
            raise BadRequest(f"not a time: {text[:64]!r}")
        total += int(match[1]) * _unit(match[2].lower(), unit_s)
        position = match.end()
    if not text:
        raise BadRequest("not a time: nothing")
    return total


def _unit(name: str, bare_s: int) -> int:
    if not name:
        return bare_s
    found = _UNITS.get(name) or _UNITS.get(name.rstrip("s"))
    if found is None:
        raise BadRequest(f"not a unit of time: {name[:32]!r}")
    return found


def period(text: str) -> int:
    """An ISO 8601 duration (``P7D``, ``PT72H``) or a plain number of seconds. Raises BadRequest."""
    if text.isdecimal() and len(text) < 12:
        return int(text)
    match = _PERIOD.fullmatch(text) if len(text) < 64 else None
    if match is None or not any(match.groups()):
        raise BadRequest(f"not a duration: {text[:32]!r}")
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), _PERIOD_S, strict=True))
