"""What a verdict means to the gate in the server: scopes as letters. Pure.

l list, r read, s stat, c create, m modify. The rules are those of the WebDAV view (``access.py``),
so that both views decide alike.
"""

from __future__ import annotations

from collections.abc import Iterable

from edged.identity.scopes import joined
from edged.identity.words import Action, Capability, Verdict
from services.storage.xrootd.plan import Instance, Role, Shown

PROBE_DIRECTORY = ".edged-probe"  # in each export; the probes' tokens open nothing else

LETTERS = {
    Action.STORAGE_READ: "lrs",
    Action.STORAGE_CREATE: "cs",
    Action.STORAGE_MODIFY: "cms",
    Action.STORAGE_STAGE: "s",
    Action.STORAGE_POLL: "s",
}


def answer(verdict: Verdict, instance: Instance) -> bytes:
    """The gate's answer for ``instance``: ``ok`` with scopes, or ``no`` with the reason."""
    usable = [one for one in instance.exports if _may_use(verdict, one)]
    if not usable:
        return no(f"account {verdict.account} of VO {verdict.vo} has nothing here")
    account = verdict.account if instance.role is Role.MULTIUSER else instance.account
    return ok(verdict.expires_at, account, scopes(verdict.capabilities, usable))


def _may_use(verdict: Verdict, one: Shown) -> bool:
    """The files of an export are its account's, so nobody else's verdict opens them here."""
    if verdict.vo != one.vo:
        return False
    return verdict.account in (one.accounts or (one.account,))


def scopes(capabilities: Iterable[Capability], exports: Iterable[Shown]) -> list[tuple[str, str]]:
    """(letters, namespace path) of each capability on each export. A capability's path is the VO's."""
    found: dict[str, set[str]] = {}
    exports = tuple(exports)
    for capability in capabilities:
        letters = LETTERS.get(capability.action)
        if letters is None:
            continue
        for one in exports:
            found.setdefault(joined(one.prefix, capability.path), set()).update(letters)
    return [("".join(sorted(letters)), root) for root, letters in found.items()]


def probe(instance: Instance, expires_at: float) -> bytes:
    """What the probes' own token opens."""
    account = instance.account if instance.role is not Role.MULTIUSER else ""
    places = [("cmrsl", joined(one.prefix, f"/{PROBE_DIRECTORY}")) for one in instance.exports]
    return ok(expires_at, account or _any_account(instance), places)


def _any_account(instance: Instance) -> str:
    return next((one.accounts[0] for one in instance.exports if one.accounts), "")


def ok(expires_at: float, account: str, places: Iterable[tuple[str, str]]) -> bytes:
    """The wire form of a verdict."""
    lines = [f"ok {int(expires_at)} {account}", *(f"{letters} {root}" for letters, root in places)]
    return "\n".join(lines).encode()


def no(reason: str) -> bytes:
    """The wire form of a refusal."""
    return f"no {reason}".encode()
