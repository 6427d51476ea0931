"""The local accounts that the mappings lead to: without them tokens are right and nothing can be done."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from edged.accounts import local
from edged.accounts.privileges import Account
from edged.config import Config
from edged.doctor import Finding
from edged.errors import Denied

PART = "account"
ASK_S = 10.0


async def findings(config: Config) -> list[Finding]:
    """One for each that cannot be used or cannot get at its files, and one for all the others.

    In self mode there is one, the caller.
    """
    if config.accounts.mode == "self":
        return []
    return await asyncio.to_thread(_look, config)


def _look(config: Config) -> list[Finding]:
    wrong: list[Finding] = []
    well = 0
    for name in dict.fromkeys(rule.account for rule in config.mappings):
        found = list(examined(config, name))
        wrong += found
        well += not found
    return (
        [*wrong, Finding(PART, True, f"{well} accounts are here and get at their files")] if well else wrong
    )


def examined(config: Config, name: str) -> Iterator[Finding]:
    """What keeps the account from being used here."""
    minimum = config.accounts.minimum_uid
    try:
        account = local.find(name, minimum)
    except Denied as error:
        advice = (
            f"`getent passwd {name}` must show it with a uid of {minimum} or more (accounts.minimum_uid), "
            "and root's group must not be among its own: add it, or correct mapping.account"
        )
        yield Finding(PART, False, f"{name}: {error}", advice)
        return
    if os.geteuid() != 0:
        return
    places = [place for place in _places(config, name) if place.exists()]
    for place in _closed(account, places):
        yield Finding(
            PART,
            False,
            f"{name}: may not enter {place}",
            f"`namei -l {place}` shows which directory above does not let it pass",
        )


def _places(config: Config, name: str) -> Iterator[Path]:
    """Where its jobs and its VO's files are; that they are missing, others say."""
    vo_of = {issuer.url: issuer.vo for issuer in config.issuers}
    vos = {rule.vo or vo_of.get(rule.issuer) for rule in config.mappings if rule.account == name}
    if config.jobs is not None:
        yield config.jobs.sessions
    for export in config.storage.exports if config.storage is not None else ():
        if name in export.accounts or (not export.accounts and export.vo in vos):
            yield export.root


def _closed(account: Account, places: list[Path]) -> list[Path]:
    """Those that the kernel does not let the account enter: asked as the account."""
    if not places:
        return []
    done = subprocess.run(
        ["find", *places, "-maxdepth", "0", "-executable"],
        user=account.uid,
        group=account.gid,
        extra_groups=account.groups,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=ASK_S,
        check=False,
    )
    return [place for place in places if str(place) not in done.stdout.splitlines()]
