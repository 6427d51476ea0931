"""Kubernetes quantities: ``500m``, ``1.5``, ``2Gi``, ``1e3``. Pure.

Source: Kubernetes API, resource.Quantity.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from edged.errors import BadRequest

_QUANTITY = re.compile(
    r"([+-]?[0-9]{1,24}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})([a-zA-Z]{0,2}|[eE][+-]?[0-9]{1,2})"
)
_SUFFIXES: dict[str, Decimal] = {
    "": Decimal(1),
    "n": Decimal(10) ** -9,
    "u": Decimal(10) ** -6,
    "m": Decimal(10) ** -3,
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}


def quantity(value: str | float) -> Decimal:
    """The number meant. Raises BadRequest."""
    found = _QUANTITY.fullmatch(str(value).strip())
    if found is None or not (found[2][1:].lstrip("+-").isdigit() or found[2] in _SUFFIXES):
        raise BadRequest(f"not a quantity: {str(value)[:40]!r}")
    number, suffix = found[1], found[2]
    if suffix in _SUFFIXES:
        return Decimal(number) * _SUFFIXES[suffix]
    return Decimal(number + suffix)


def whole(value: str | float) -> int:
    """Rounded up to a whole number, as Kubernetes does where parts make no sense."""
    return math.ceil(quantity(value))
