"""Scopes: the words of a token that allow something, and what they mean on this site's exports.

Sources: WLCG Common JWT Profile 1.3 (storage.*, compute.*), SciTokens 2.0 (read:, write:).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote_to_bytes

import msgspec

from edged.errors import Unauthenticated
from edged.identity.grants import Scope
from edged.identity.words import AccountName, Action, Capability, VoName

MAX_SCOPES = 256
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

_STORAGE = {a.value: a for a in Action if a.value.startswith("storage.") and a is not Action.STORAGE_STAT}
_COMPUTE = {a.value: a for a in Action if a.value.startswith("compute.")}
_SCITOKENS = {"read": (Action.STORAGE_READ,), "write": (Action.STORAGE_CREATE, Action.STORAGE_MODIFY)}

IMPLIED: dict[Action, frozenset[Action]] = {
    Action.STORAGE_READ: frozenset({Action.STORAGE_READ, Action.STORAGE_STAT}),
    Action.STORAGE_CREATE: frozenset({Action.STORAGE_CREATE, Action.STORAGE_STAT}),
    # superset of create, and stat; not read
    Action.STORAGE_MODIFY: frozenset({Action.STORAGE_MODIFY, Action.STORAGE_CREATE, Action.STORAGE_STAT}),
    # since 1.3 staging gives no reading
    Action.STORAGE_STAGE: frozenset({Action.STORAGE_STAGE, Action.STORAGE_POLL, Action.STORAGE_STAT}),
    Action.STORAGE_POLL: frozenset({Action.STORAGE_POLL}),  # locality only
}


class Scopes(msgspec.Struct, frozen=True):
    """The scopes of one token. ``capability_based`` is true as soon as *any* is storage.* or compute.*,
    even one we do not know: groups then add nothing."""

    words: frozenset[str]
    capabilities: tuple[Capability, ...]
    capability_based: bool


class ExportLike(Protocol):
    """What scopes need to know of an export."""

    @property
    def prefix(self) -> str: ...
    @property
    def vo(self) -> str: ...
    @property
    def accounts(self) -> tuple[str, ...]: ...


@lru_cache(maxsize=1024)  # a broker's tokens mostly carry the same scopes
def parse_scopes(text: str, *, scitokens: bool = False) -> Scopes:
    """The scopes of a ``scope`` claim. Raises Unauthenticated: one bad storage scope spoils the token."""
    words = text.split(" ") if text else []
    if len(words) > MAX_SCOPES:
        raise Unauthenticated(f"token with more than {MAX_SCOPES} scopes")
    capabilities: list[Capability] = []
    capability_based = False
    for word in words:
        name, colon, path = word.partition(":")
        if name.startswith("storage.") or (scitokens and name in _SCITOKENS):
            capability_based = True
            place = scope_path(name, path)
            capabilities += [Capability(action, place) for action in _storage_actions(name)]
        elif name.startswith("compute."):
            capability_based = True
            if colon:
                raise Unauthenticated(f"token scope {_shown(name)} takes no path")
            if name in _COMPUTE:
                capabilities.append(Capability(_COMPUTE[name]))
    return Scopes(frozenset(words) - {""}, tuple(dict.fromkeys(capabilities)), capability_based)


def _storage_actions(name: str) -> tuple[Action, ...]:
    if name in _STORAGE:
        return (_STORAGE[name],)
    return _SCITOKENS.get(name, ())


def scope_path(name: str, path: str) -> str:
    """The normalised path of a storage scope: absolute, decoded, no trailing slash. Raises Unauthenticated.

    A trailing slash names a directory; the directory itself is then covered too.
    """
    if not path:  # WLCG profile: such a token MUST be rejected as a whole
        raise Unauthenticated(f"token scope {_shown(name)} has no path")
    if not path.startswith("/"):
        raise Unauthenticated(f"token scope {_shown(name)}: its path does not begin with /")
    if path == "/":
        return path
    segments = path[1:].removesuffix("/").split("/")
    return "/" + "/".join(_segment(name, segment) for segment in segments)


def _segment(name: str, segment: str) -> str:
    if _BAD_ESCAPE.search(segment):
        raise Unauthenticated(f"token scope {_shown(name)}: broken percent-encoding in its path")
    try:
        decoded = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise Unauthenticated(f"token scope {_shown(name)}: its path is not UTF-8") from None
    if decoded in ("", ".", ".."):
        raise Unauthenticated(f"token scope {_shown(name)}: its path is not normalised")
    if "/" in decoded or not decoded.isprintable():
        raise Unauthenticated(f"token scope {_shown(name)}: a character in its path is not allowed")
    return decoded


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[a-z.]{1,32}", name) else "of the token"


def storage_scopes(
    capabilities: Iterable[Capability], exports: Iterable[ExportLike], vo: VoName, account: AccountName
) -> tuple[Scope, ...]:
    """The capabilities as namespace scopes on each export that ``vo`` and ``account`` may use.

    A capability's path is relative to the VO's prefix; a VO with several prefixes has it below each.
    """
    usable = [e.prefix for e in exports if e.vo == vo and (not e.accounts or account in e.accounts)]
    actions: dict[str, frozenset[Action]] = {}
    for capability in capabilities:
        implied = IMPLIED.get(capability.action)
        if implied is None:
            continue
        for prefix in usable:
            root = joined(prefix, capability.path)
            actions[root] = actions.get(root, frozenset()) | implied
    return tuple(Scope(allowed, root) for root, allowed in actions.items())


def compute_scopes(capabilities: Iterable[Capability]) -> tuple[Scope, ...]:
    """The compute capabilities as one scope; they have no path."""
    allowed = frozenset(c.action for c in capabilities if c.action.value in _COMPUTE)
    return (Scope(allowed),) if allowed else ()


def joined(prefix: str, path: str) -> str:
    """``/cms`` and ``/store`` → ``/cms/store``; both normalised."""
    return (prefix.rstrip("/") + path).rstrip("/") or "/"
