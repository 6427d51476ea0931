"""Whether a grant may be used: accountd's decision, pure."""

from __future__ import annotations

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edged.accounts.settings import ANY_SERVICE, Settings
from edged.errors import Denied
from edged.identity.feed import Revocations
from edged.identity.grants import Grant, Scope, verify
from edged.identity.words import Action

REVOCABLE = frozenset({Action.JOB_SUBMIT, Action.JOB_STAGE})


def admitted(
    wire: bytes,
    *,
    peer: int,
    settings: Settings,
    key: Ed25519PublicKey,
    revocations: Revocations,
    now: float,
) -> Grant:
    """The grant, reduced by bans; ``peer`` is the uid that presents it. Raises Denied, each reason its own.

    The uid of the account is checked where the account is looked up (``local.find``).
    """
    grant = verify(wire, key, now)
    services = settings.peers.get(peer, frozenset())
    if ANY_SERVICE not in services and grant.service not in services:
        raise Denied("grant of another service", detail=f"uid {peer} presented a grant of {grant.service}")
    if settings.own_account is not None and grant.account != settings.own_account:
        raise Denied("self mode serves one account only", detail=f"grant for {grant.account}")
    if grant.account not in settings.allowed and grant.account != settings.own_account:
        raise Denied("account is not on the site's list", detail=grant.account)
    return unbanned(grant, revocations, now)


def unbanned(grant: Grant, revocations: Revocations, now: float) -> Grant:
    """What bans leave of ``grant``: nothing of an access grant; of a job grant poll, cancel and clean.

    A ban with ``keep_jobs`` leaves the jobs accepted before it as they are.
    """
    if grant.principal is None:
        return grant
    ban = revocations.ban_on(grant.principal, now)
    if ban is None:
        return grant
    if grant.kind != "job":
        raise Denied("banned by the site", detail=f"ban {ban.id}: {ban.reason}")
    if ban.keep_jobs:
        return grant
    scopes = tuple(Scope(scope.actions - REVOCABLE, scope.root) for scope in grant.scopes)
    return msgspec.structs.replace(grant, scopes=scopes)
