"""One byte range of a whole answer. Pure; source: RFC 9110 section 14."""

from __future__ import annotations

import re

_RANGE = re.compile(rb"bytes=(\d{0,18})-(\d{0,18})")


class Unsatisfiable(Exception):
    """416: the range lies outside."""


def wanted(text: bytes | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None: send everything (no range, several, or not understood)."""
    match = _RANGE.fullmatch(text.strip()) if text else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        suffix = int(match[2])
        if suffix == 0 or size == 0:
            raise Unsatisfiable
        return max(0, size - suffix), size
    first = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    if match[2] and int(match[2]) < first:
        return None  # invalid, so ignored
    if first >= size:
        raise Unsatisfiable
    return first, end
