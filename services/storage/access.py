"""Who may do what: the policy of one request. Pure; paths are normalised before they come here.

Source: WLCG Common JWT Profile 1.3, storage scopes. Paths of capabilities are relative to the
export's prefix and compared by whole segments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edged.config.storage import Export
from edged.identity.grants import within
from edged.identity.words import Action, Capability, Verdict

READ, CREATE, MODIFY, STAT = (
    Action.STORAGE_READ,
    Action.STORAGE_CREATE,
    Action.STORAGE_MODIFY,
    Action.STORAGE_STAT,
)

# modify is a superset of create; it does not give read. Every storage scope gives stat.
COVERED_BY = {
    READ: frozenset({READ}),
    CREATE: frozenset({CREATE, MODIFY}),
    MODIFY: frozenset({MODIFY}),
    STAT: frozenset({READ, CREATE, MODIFY, STAT, Action.STORAGE_STAGE, Action.STORAGE_POLL}),
}


@dataclass(frozen=True, slots=True)
class Decision:
    """Allowed or not. ``reason`` is safe to show and to log."""

    allowed: bool
    reason: str


def member(verdict: Verdict, export: Export) -> Decision:
    """Whether this caller belongs to the export at all: its VO, and its account where accounts are named."""
    if verdict.vo != export.vo:
        return Decision(False, f"{export.prefix} is not of VO {verdict.vo}")
    if export.accounts and verdict.account not in export.accounts:
        return Decision(False, f"account {verdict.account} may not use {export.prefix}")
    return Decision(True, "member")


def may(capabilities: Iterable[Capability], action: Action, path: str) -> Decision:
    """Whether one capability covers ``action`` at ``path``."""
    wanted = COVERED_BY[action]
    for capability in capabilities:
        if capability.action in wanted and within(path, capability.path.rstrip("/") or "/"):
            return Decision(True, f"{capability.action.value}:{capability.path}")
    if action in (CREATE, STAT) and leads_to(capabilities, path):
        return Decision(True, "a leading directory of a create scope")
    return Decision(False, f"the token does not allow {action.value} at {path}")


def leads_to(capabilities: Iterable[Capability], path: str) -> bool:
    """Whether ``path`` is above a create scope: its missing leading directories may be made (profile 1.3)."""
    creating = COVERED_BY[CREATE]
    return path != "/" and any(c.action in creating and within(c.path, path) for c in capabilities)


def may_rename(capabilities: Iterable[Capability], source: str, target: str, *, replaces: bool) -> Decision:
    """Renaming: modify at both ends; or, replacing nothing, within the scope of one create capability."""
    capabilities = tuple(capabilities)
    for capability in capabilities:
        root = capability.path.rstrip("/") or "/"
        inside = within(source, root) and within(target, root) and source != root
        if capability.action is CREATE and inside and not replaces:
            return Decision(True, f"rename within {capability.action.value}:{capability.path}")
    first = may(capabilities, MODIFY, source)
    if not first.allowed:
        return first
    return may(capabilities, MODIFY if replaces else CREATE, target)
