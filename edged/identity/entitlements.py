"""AARC entitlements: ``urn:NID:DELEGATED:group:GROUP[:SUB...][:role=ROLE]#AUTHORITY``.

Sources: AARC-G002 (syntax), AARC-G069 (comparison: case of the URN scheme and NID, percent-encoding).
"""

from __future__ import annotations

from urllib.parse import unquote

import msgspec


class Entitlement(msgspec.Struct, frozen=True):
    """One group membership, taken apart. ``namespace`` is everything up to the word ``group``."""

    namespace: tuple[str, ...]
    group: tuple[str, ...]
    role: str = ""
    authority: str = ""

    def satisfies(self, required: Entitlement, *, authority: bool) -> bool:
        """A child group satisfies its parent; one with a role satisfies a demand without."""
        return (
            self.namespace == required.namespace
            and self.group[: len(required.group)] == required.group
            and required.role in ("", self.role)
            # a role belongs to the very group it is written on, not to the parents of it
            and (not required.role or self.group == required.group)
            and (not authority or not required.authority or self.authority == required.authority)
        )


def parse_entitlement(text: str) -> Entitlement | None:
    """The entitlement, or None when it is not a group membership of this syntax."""
    body, _, authority = text.partition("#")
    parts = [unquote(part) for part in body.split(":")]
    if len(parts) < 4 or parts[0].lower() != "urn" or "group" not in parts[2:-1]:
        return None
    at = parts.index("group", 2)
    namespace = ("urn", parts[1].lower(), *parts[2:at])
    group = parts[at + 1 :]
    role = ""
    if group[-1].startswith("role="):
        role = group.pop().removeprefix("role=")
    if not group or not all(group):
        return None
    return Entitlement(namespace, tuple(group), role, unquote(authority).lower())


def holds(required: str, present: tuple[str, ...], *, authority: bool) -> bool:
    """Whether one of ``present`` satisfies ``required``; other URNs must be equal letter by letter."""
    wanted = parse_entitlement(required)
    if wanted is None:
        return required in present
    return any(
        found is not None and found.satisfies(wanted, authority=authority)
        for found in map(parse_entitlement, present)
    )


def groups_of(entitlements: tuple[str, ...]) -> tuple[str, ...]:
    """The memberships as group paths, ``/vo.example.org/sub``: what a ban by group compares with."""
    found = (parse_entitlement(text) for text in entitlements)
    return tuple(dict.fromkeys("/" + "/".join(e.group) for e in found if e is not None))
