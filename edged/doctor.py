"""What a part of the suite found out about itself, for ``edged doctor``: in words a person can act on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``advice`` is what to do when it is not ``ok``."""

    part: str
    ok: bool
    text: str
    advice: str = ""
