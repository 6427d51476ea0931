"""Grants: principal, account, actions and expiry, signed by identity, checked by accountd.

Wire form: 64 bytes of Ed25519 signature (RFC 8032) over a context string and the msgpack payload
that follows. The context keeps a signature made for one purpose from being valid for another.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edged.errors import Denied, Unavailable
from edged.identity.words import AccountName, Action, JobClass, JobId, Principal, ServiceName

CONTEXT = b"edged-grant-v1\0"
SIGNATURE_BYTES = 64
MAX_BYTES = 16384


class Scope(msgspec.Struct, frozen=True):
    """``actions`` on ``root`` and all below it. ``root`` is a namespace path, e.g. ``/cms/store``."""

    actions: frozenset[Action]
    root: str = "/"


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What accountd lets one service do as one account.

    ``kind``: *access* lives at most 300 s and follows a token; *transfer* finishes what was begun under
    one, at the paths it names only; *job* is made at submission, names its job, and outlives the token;
    *standing* only polls. Times are Unix seconds.
    """

    kind: Literal["access", "transfer", "job", "standing"]
    id: str
    service: ServiceName
    account: AccountName
    scopes: tuple[Scope, ...]
    principal: Principal | None
    issued_at: float
    expires_at: float
    job: JobId | None = None
    job_class: JobClass | None = None  # signed, so that a job's own token can say it later

    def allows(self, action: Action, path: str = "/") -> bool:
        """Whether a scope covers ``action`` at ``path``, compared by whole path segments."""
        return any(action in scope.actions and within(path, scope.root) for scope in self.scopes)

    def actions_at(self, path: str) -> frozenset[Action]:
        """All that it covers at ``path``."""
        return frozenset[Action]().union(*(s.actions for s in self.scopes if within(path, s.root)))


def within(path: str, root: str) -> bool:
    """``/foo/bar`` is within ``/foo``; ``/foobar`` is not (WLCG profile: at a ``/`` boundary)."""
    return root in ("/", path) or path.startswith(root.rstrip("/") + "/")


class Ban(msgspec.Struct, frozen=True, kw_only=True):
    """Refuses whoever matches *all* the words given. At least one must be given."""

    id: str
    issuer: str = ""
    subject: str = ""
    group: str = ""
    client: str = ""
    token_id: str = ""
    keep_jobs: bool = False
    reason: str = ""
    made_at: float = 0.0
    expires_at: float | None = None

    def covers(self, principal: Principal) -> bool:
        """Whether ``principal`` is banned by this. A group bans its child groups too."""
        given = (
            (self.issuer, self.issuer == principal.issuer),
            (self.subject, self.subject == principal.subject),
            (self.client, self.client == principal.client),
            (self.token_id, self.token_id == principal.token_id),
            (self.group, any(within(_slashed(g), _slashed(self.group)) for g in principal.groups)),
        )
        return any(word for word, _ in given) and all(holds for word, holds in given if word)


def _slashed(group: str) -> str:
    return "/" + group.strip("/")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Grant).decode


def sign(grant: Grant, key: Ed25519PrivateKey) -> bytes:
    """The signed wire form."""
    payload = _encode(grant)
    if len(payload) + SIGNATURE_BYTES > MAX_BYTES:
        raise Denied("too many groups or scopes for one grant")
    return key.sign(CONTEXT + payload) + payload


def verify(wire: bytes, key: Ed25519PublicKey, now: float) -> Grant:
    """The grant inside ``wire``. Raises Denied when forged, malformed or expired, Unavailable when not yet valid."""
    return in_time(opened(wire, key), now)


def opened(wire: bytes, key: Ed25519PublicKey) -> Grant:
    """What the signature proves; it holds for good, so it may be remembered. Raises Denied."""
    if not SIGNATURE_BYTES < len(wire) <= MAX_BYTES:
        raise Denied("not a grant")
    payload = wire[SIGNATURE_BYTES:]
    try:
        key.verify(wire[:SIGNATURE_BYTES], CONTEXT + payload)
        return _decode(payload)
    except (InvalidSignature, msgspec.MsgspecError):
        raise Denied("not a grant of this site") from None


def in_time(grant: Grant, now: float) -> Grant:
    """The grant, when this is its time. Raises Denied; Unavailable when it says that a clock is wrong.

    A clock set back must not end what was accepted before: who meets it waits, and is refused nothing for good.
    """
    if grant.expires_at <= now:
        raise Denied("grant expired")
    if grant.issued_at > now + 60:
        raise Unavailable("the site's clock is wrong", detail="grant from the future")
    return grant


def peek(wire: bytes) -> Grant:
    """What a grant says, unverified: for its holder's own bookkeeping, never for a decision. Raises Denied."""
    try:
        return _decode(wire[SIGNATURE_BYTES:])
    except msgspec.MsgspecError:
        raise Denied("not a grant") from None
