"""The local accounts that the mappings lead to: without them tokens are right and nothing can be done."""

from __future__ import annotations

import asyncio

from edged.accounts import local
from edged.config import Config
from edged.doctor import Finding
from edged.errors import Denied

PART = "account"


async def findings(config: Config) -> list[Finding]:
    """One for each that cannot be used, and one for all the others. In self mode there is one, the caller."""
    if config.accounts.mode == "self":
        return []
    return await asyncio.to_thread(_look, config)


def _look(config: Config) -> list[Finding]:
    minimum = config.accounts.minimum_uid
    names = dict.fromkeys(rule.account for rule in config.mappings)
    found = [finding for name in names if (finding := examined(name, minimum)) is not None]
    if len(names) > len(found):
        found.append(Finding(PART, True, f"{len(names) - len(found)} of {len(names)} accounts can be used"))
    return found


def examined(name: str, minimum_uid: int) -> Finding | None:
    """None when the account can be used here."""
    try:
        local.find(name, minimum_uid)
    except Denied as error:
        advice = (
            f"`getent passwd {name}` must show it with a uid of {minimum_uid} or more (accounts.minimum_uid), "
            "and root's group must not be among its own: add it, or correct mapping.account"
        )
        return Finding(PART, False, f"{name}: {error}", advice)
    return None
