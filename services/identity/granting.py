"""Signs grants: access for a judged token, and from it what outlives it (job, transfer, standing)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edged.config import Config
from edged.errors import Denied
from edged.identity import grants, wire
from edged.identity.grants import Grant, Scope
from edged.identity.judge import JOBS, STORAGE, Judged, refuse_banned
from edged.identity.words import (
    Action,
    JobClass,
    JobFacts,
    Principal,
    ServiceName,
    Verdict,
)
from services.identity.ledger import Ledger, check_job_id

STANDING_S = 3600.0
REMEMBERED = 4096  # access grants whose signature was checked: a front sends the same one for many jobs
JOB_ACTIONS = frozenset({action for action in Action if action.value.startswith("job.")})
STANDING = (Scope(frozenset({Action.JOB_POLL})),)


@dataclass(frozen=True, slots=True)
class _Under:
    """A proven grant and whose it is."""

    grant: Grant
    principal: Principal


class Granting:
    """The one holder of the signing key. Every method raises Denied for what may not be had."""

    def __init__(
        self, config: Config, key: Ed25519PrivateKey, ledger: Ledger, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._key = key
        self._public = key.public_key()
        self._ledger = ledger
        self._clock = clock
        self._open = lru_cache(REMEMBERED)(lambda wire_form: grants.opened(wire_form, self._public))

    def reload(self, config: Config) -> None:
        """Other lives and accounts, for grants to come."""
        self._config = config

    def verdict(self, service: ServiceName, judged: Judged, scopes: tuple[Scope, ...]) -> Verdict:
        """What a token is worth at this service, with its access grant."""
        now = self._clock()
        mapped = judged.mapped
        expires_at = min(now + self._config.identity.grant_s, judged.expires_at)
        grant = Grant(
            kind="access",
            id=secrets.token_hex(8),
            service=service,
            account=mapped.account,
            scopes=scopes,
            principal=judged.principal,
            issued_at=now,
            expires_at=expires_at,
            job_class=mapped.job_class,
        )
        return Verdict(
            principal=judged.principal,
            account=mapped.account,
            job_class=mapped.job_class,
            vo=mapped.vo,
            capabilities=mapped.capabilities,
            grant=grants.sign(grant, self._key),
            expires_at=expires_at,
            token_expires_at=judged.expires_at,
            rule=mapped.rule,
        )

    def job(self, service: ServiceName, what: wire.ForJobGrant) -> wire.Grant:
        """A grant for one job, accepted under an access grant that may create jobs."""
        check_job_id(what.job)
        under = self._under(service, JOBS, what.grant, "access")
        if not under.grant.allows(Action.COMPUTE_CREATE):
            raise Denied("the token has no compute.create")
        now = self._clock()
        return self._signed(
            Grant(
                kind="job",
                id=secrets.token_hex(8),
                service=service,
                account=under.grant.account,
                scopes=(Scope(JOB_ACTIONS),),
                principal=under.principal,
                issued_at=now,
                expires_at=now + self._config.identity.job_grant_s,
                job=what.job,
                job_class=under.grant.job_class,
            )
        )

    def transfer(self, service: ServiceName, what: wire.ForTransferGrant) -> wire.Grant:
        """What a long transfer is finished with: nothing that its access grant does not allow."""
        access = self._under(service, STORAGE, what.grant, "access").grant
        scopes = tuple(Scope(access.actions_at(path), path) for path in what.paths)
        if not all(scope.actions for scope in scopes):
            raise Denied("the access grant does not cover this")
        now = self._clock()
        return self._signed(
            Grant(
                kind="transfer",
                id=secrets.token_hex(8),
                service=service,
                account=access.account,
                scopes=scopes,
                principal=access.principal,
                issued_at=now,
                expires_at=now + self._config.identity.transfer_grant_s,
                job_class=access.job_class,
            )
        )

    def standing(self, service: ServiceName, what: wire.ForStandingGrant) -> wire.Grant:
        """A grant that only polls, for an account of the configuration."""
        if service != JOBS or what.account not in self._accounts():
            raise Denied("no standing grant for this service and account")
        now = self._clock()
        return self._signed(
            Grant(
                kind="standing",
                id=secrets.token_hex(8),
                service=service,
                account=what.account,
                scopes=STANDING,
                principal=None,
                issued_at=now,
                expires_at=now + STANDING_S,
            )
        )

    async def job_token(self, service: ServiceName, what: wire.ForJobToken) -> str:
        """The token that a job shows to the site's proxies."""
        under = self._under(service, JOBS, what.grant, "job")
        if under.grant.job != what.job:
            raise Denied("not this job's grant")
        facts = JobFacts(
            job=what.job,
            account=under.grant.account,
            vo=under.principal.vo,
            job_class=under.grant.job_class or JobClass.CHAOTIC,
            principal=under.principal,
        )
        return await self._ledger.issue(facts, self._clock() + self._config.identity.job_grant_s)

    def _under(self, service: ServiceName, only: ServiceName, wire_form: bytes, kind: str) -> _Under:
        """The grant that another one is asked for with: its own service's, of a principal who is not banned."""
        if service != only:
            raise Denied(f"only the {only} service may ask for this")
        opened = self._open(wire_form) if kind == "access" else grants.opened(wire_form, self._public)
        grant = grants.in_time(opened, self._clock())
        if grant.kind != kind or grant.service != service or grant.principal is None:
            raise Denied(f"not a grant of kind {kind} of the {only} service")
        refuse_banned(grant.principal, self._ledger.ban_on)
        return _Under(grant, grant.principal)

    def _accounts(self) -> set[str]:
        asserted = (account for one in self._config.identity.assertions for account in one.accounts)
        mapped = (rule.account for rule in self._config.mappings)
        return {*mapped, *asserted, self._config.accounts.poll_account or ""} - {""}

    def _signed(self, grant: Grant) -> wire.Grant:
        return wire.Grant(grants.sign(grant, self._key), grant.expires_at)
