"""The whole way from a token to where it leads, in the order that makes it safe.

Pure: keys, bans, rules and the time come in as arguments. ``note`` receives each step in words, for
``edged whoami``; requests pass none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edged.config import Config
from edged.config.identity import Issuer
from edged.errors import Denied, Unauthenticated, Unavailable
from edged.identity.claims import Claims, check_validity, completed, read_claims
from edged.identity.grants import Ban, Scope
from edged.identity.keys import KeySet
from edged.identity.mapping import Mapped, Note, Rules
from edged.identity.scopes import ExportLike, compute_scopes, storage_scopes
from edged.identity.tokens import Unproven, prove, take_apart
from edged.identity.words import Capability, IssuerUrl, Principal, ServiceName

STORAGE, JOBS = ServiceName("storage"), ServiceName("jobs")


@dataclass(frozen=True, slots=True)
class Judged:
    """A token that may act: who, where it leads, until when (Unix seconds)."""

    principal: Principal
    mapped: Mapped
    expires_at: float


@dataclass(frozen=True, slots=True)
class Proven:
    """A token whose signature and times are right; its claims are still unread."""

    issuer: Issuer
    payload: Mapping[str, Any]
    expires_at: float


class Judge:
    """The site's decisions, as its configuration states them."""

    def __init__(self, config: Config) -> None:
        self._issuers = {issuer.url: issuer for issuer in config.issuers}
        self._rules = Rules(config.mappings, frozenset(i.url for i in config.issuers if i.match_authority))
        self._token_bytes = config.identity.token_bytes
        self._exports: tuple[ExportLike, ...] = config.storage.exports if config.storage else ()

    @property
    def rules(self) -> Rules:
        """The mapping rules."""
        return self._rules

    def prove(
        self, token: str, keys: Callable[[IssuerUrl], KeySet], now: float, note: Note | None = None
    ) -> Proven:
        """Signature and times. Raises Unauthenticated, UnknownKey, or Unavailable when no key is known."""
        unproven = take_apart(token, limit=self._token_bytes)
        issuer = self._issuers.get(unproven.issuer)
        if issuer is None:  # before any key is looked for
            raise Unauthenticated("token of an issuer this site does not trust")
        if note is not None:
            note(f"issuer {issuer.url} is trusted for VO {issuer.vo} (profile {issuer.profile})")
        self._prove_signature(unproven, keys(unproven.issuer))
        if note is not None:
            note(f"signature: {unproven.algorithm} with key {unproven.kid!r} is right")
        expires_at = check_validity(unproven.payload, issuer, now)
        if note is not None:
            note(f"times: valid for another {expires_at - now:.0f} s")
        return Proven(issuer, unproven.payload, expires_at)

    def _prove_signature(self, token: Unproven, keys: KeySet) -> None:
        if not keys:
            raise Unavailable("no key of this token's issuer is known yet", detail=token.issuer)
        prove(token, keys)

    def decide(
        self,
        proven: Proven,
        bans: Callable[[Principal], Ban | None],
        answer: Mapping[str, Any] | None = None,
        note: Note | None = None,
    ) -> Judged:
        """Claims, bans and mapping. ``answer`` is the issuer's userinfo or introspection, where configured.

        Raises Unauthenticated, or Denied when banned or not mapped.
        """
        payload = proven.payload if answer is None else completed(proven.payload, answer)
        claims = read_claims(payload, proven.issuer, proven.expires_at)
        if note is not None:
            _note_claims(note, claims)
        refuse_banned(claims.principal, bans)
        mapped = self._rules.choose(claims, note)
        principal = claims.principal
        if mapped.vo != principal.vo:
            principal = msgspec.structs.replace(principal, vo=mapped.vo)
        if note is not None:
            _note_rights(note, claims, mapped)
        return Judged(principal, mapped, claims.expires_at)

    def scopes(self, judged: Judged, service: ServiceName) -> tuple[Scope, ...]:
        """What an access grant for ``service`` holds: no more than that service can use."""
        if service == STORAGE:
            mapped = judged.mapped
            return storage_scopes(mapped.capabilities, self._exports, mapped.vo, mapped.account)
        if service == JOBS:
            return compute_scopes(judged.mapped.capabilities)
        return ()


def refuse_banned(principal: Principal, bans: Callable[[Principal], Ban | None]) -> None:
    """Raises Denied when a ban covers ``principal``; its reason is for the operator only."""
    ban = bans(principal)
    if ban is not None:
        raise Denied("this identity is banned at this site", detail=f"ban {ban.id}: {ban.reason}")


def _note_claims(note: Note, claims: Claims) -> None:
    principal = claims.principal
    note(f"subject {principal.subject!r}, client {principal.client!r}, token id {principal.token_id!r}")
    note(f"groups: {', '.join(principal.groups) or 'none'}")
    if principal.entitlements:
        note(f"entitlements: {', '.join(principal.entitlements)}")
    note(f"scopes: {' '.join(sorted(claims.scopes.words)) or 'none'}")


def _note_rights(note: Note, claims: Claims, mapped: Mapped) -> None:
    listed = ", ".join(shown(c) for c in mapped.capabilities) or "nothing"
    if claims.scopes.capability_based:
        note(f"the token carries capabilities, so they alone count (groups add nothing): {listed}")
    else:
        note(f"the token carries no capability; mapping[{mapped.rule}].grants gives: {listed}")


def shown(capability: Capability) -> str:
    """``storage.read:/store`` or ``compute.create``."""
    text = capability.action.value
    return f"{text}:{capability.path}" if text.startswith("storage.") else text
