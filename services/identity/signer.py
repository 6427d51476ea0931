"""The signer: answers fronts over its socket with verdicts and signed grants. It meets no network."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edged import metrics
from edged.config import Config
from edged.errors import Busy, Denied, EdgeError, Unauthenticated
from edged.identity import feed, grants, packets, wire
from edged.identity.grants import Grant, Scope
from edged.identity.judge import JOBS, STORAGE, Judge, Judged, Proven, refuse_banned
from edged.identity.packets import Packets
from edged.identity.tokens import UnknownKey
from edged.identity.words import Action, IssuerUrl, JobClass, JobFacts, JobId, Principal, ServiceName, Verdict
from edged.logs import audit, get_logger
from services.identity.asserting import assertion
from services.identity.authority import Authority
from services.identity.callers import ADMIN, API, Callers
from services.identity.feeding import FeedServer
from services.identity.keyring import Keyring
from services.identity.ledger import Ledger, check_job_id

log = get_logger("services.identity.signer")

STANDING_S = 3600.0
UNDER_WAY = 4096  # asks that wait for an issuer or the disk
JOB_ACTIONS = frozenset({a for a in Action if a.value.startswith("job.")})
STANDING = (Scope(frozenset({Action.JOB_POLL})),)

VERDICTS = metrics.counter("identity_verdicts", "First sights of tokens.", ("issuer", "outcome"))


class Signer:
    """Decides, signs and keeps account. One instance per site."""

    name = "identity"

    def __init__(
        self,
        config: Config,
        key: Ed25519PrivateKey,
        keyring: Keyring,
        ledger: Ledger,
        authority: Authority,
        *,
        inherited: socket.socket | None = None,
        inherited_feed: socket.socket | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._key = key
        self._public = key.public_key()
        self._keyring = keyring
        self._ledger = ledger
        self._authority = authority
        self._clock = clock
        self._judge = Judge(config)
        self._callers = Callers(config)
        self._inherited = inherited
        self._feed = FeedServer(config.runtime.run / feed.SOCKET, self._callers, self._state, inherited_feed)
        self._services: WeakKeyDictionary[Packets, ServiceName] = WeakKeyDictionary()
        self._issuers = {issuer.url for issuer in config.issuers}
        self._tasks: asyncio.TaskGroup | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        self._tasks = tasks
        listener = self._inherited or packets.bind(self._config.runtime.run / wire.SOCKET)
        async with self._feed.running(tasks), packets.serving(listener, self._asked):
            try:
                yield
            finally:
                under_way = tuple(self._under_way)
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)

    async def reload(self, config: Config) -> None:
        """Take new mappings and admins at once; fronts keep what they hold for at most one grant's life."""
        if [i.url for i in config.issuers] != [i.url for i in self._config.issuers]:
            log.warning("a change of [[issuer]] takes effect at the next restart")
        self._config = config
        self._judge = Judge(config)
        self._authority.reload(config)

    def _state(self) -> list[feed.AnyMessage]:
        bans = [feed.Banned(ban) for ban in self._ledger.bans()]
        return [*bans, *(feed.JobEnded(job) for job in self._ledger.ended())]

    # -- asks -------------------------------------------------------------------------------------

    def _asked(self, peer: Packets, packet: memoryview) -> None:
        """One packet of a front. What is no message of ours ends the connection."""
        try:
            message = wire.decode_from_front(packet)
        except msgspec.MsgspecError:
            log.warning("not a message of ours; connection closed", extra={"uid": peer.uid})
            peer.close()
            return
        if isinstance(message, wire.Hello):
            self._greeted(peer, message.service)
            return
        service = self._services.get(peer)
        if service is None:
            log.warning("asked before saying who; connection closed", extra={"uid": peer.uid})
            peer.close()
            return
        self._begin(peer, service, message)

    def _greeted(self, peer: Packets, service: ServiceName) -> None:
        if peer in self._services or not self._callers.may_be(peer.uid, service):
            log.warning("may not ask as this service", extra={"uid": peer.uid, "service": service[:64]})
            peer.close()
            return
        self._services[peer] = service

    def _begin(self, peer: Packets, service: ServiceName, ask: wire.Ask) -> None:
        """Answer at once what needs nobody else; the rest in a task."""
        what = ask.what
        try:
            if isinstance(what, wire.ForVerdict):
                _send(peer, ask.number, wire.Judged(self._verdict_now(service, what.token)))
                return
            if isinstance(what, wire.ForJobFacts):
                _send(peer, ask.number, wire.Facts(self._job_facts(what)))
                return
        except _NeedsIssuer:
            pass
        except EdgeError as error:
            _send(peer, ask.number, wire.failure(error))
            return
        if len(self._under_way) >= UNDER_WAY:
            _send(peer, ask.number, wire.failure(Busy("identity has too much under way")))
            return
        self._start(self._later(peer, service, ask))

    async def _later(self, peer: Packets, service: ServiceName, ask: wire.Ask) -> None:
        answer: wire.Answered
        try:
            answer = await self._answer(peer, service, ask.what)
        except EdgeError as error:
            answer = wire.failure(error)
        if not peer.closed:
            _send(peer, ask.number, answer)

    async def _answer(self, peer: Packets, service: ServiceName, what: wire.Asked) -> wire.Answered:
        match what:
            case wire.ForVerdict(token):
                return wire.Judged(await self._verdict_later(service, token))
            case wire.ForAsserted():
                return wire.Judged(self._asserted(service, what))
            case wire.ForJobGrant(grant, job):
                return self._job_grant(service, grant, job)
            case wire.ForTransferGrant():
                return self._transfer_grant(service, what)
            case wire.ForStandingGrant():
                return self._standing_grant(service, what)
            case wire.ForJobToken(grant, job):
                return wire.Told(await self._job_token(service, grant, job))
            case wire.JobReport():
                return await self._job_report(service, what)
            case wire.AddBan() | wire.LiftBan() | wire.ListBans():
                return await self._bans(service, what)
            case wire.Explain(token):
                return await self._explain(peer, token)
            case wire.ForJobFacts():
                return wire.Facts(self._job_facts(what))
            case _:
                return await self._credential(service, what)

    async def _credential(
        self,
        service: ServiceName,
        what: wire.ForSshCertificate
        | wire.ForSlurmToken
        | wire.ForOwnCertificate
        | wire.ForRevocations
        | wire.RevokeCertificate,
    ) -> wire.Answered:
        """What is worth something elsewhere: the authority decides."""
        match what:
            case wire.ForSshCertificate():
                return await self._authority.for_cluster(service, what)
            case wire.ForSlurmToken():
                return self._authority.slurm_token(service, what)
            case wire.ForOwnCertificate():
                return await self._authority.for_person(service, what)
            case wire.ForRevocations():
                return self._authority.revocations()
            case wire.RevokeCertificate():
                return await self._authority.revoke(service, what)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        if self._tasks is None:
            raise RuntimeError("not running")
        task = self._tasks.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    # -- verdicts ---------------------------------------------------------------------------------

    def _verdict_now(self, service: ServiceName, token: str) -> Verdict:
        """The usual case, without a task: the key is known and the token says all. Hot."""
        issuer = "unknown"
        try:
            proven = self._judge.prove(token, self._keyring.keys, self._clock())
            issuer = proven.issuer.url
            if proven.issuer.claims_from != "token":
                raise _NeedsIssuer
            return self._allowed(service, self._judge.decide(proven, self._ledger.ban_on))
        except UnknownKey:
            raise _NeedsIssuer from None
        except EdgeError as error:
            _refused(service, issuer, error)
            raise

    async def _verdict_later(self, service: ServiceName, token: str) -> Verdict:
        issuer = "unknown"
        try:
            proven = await self._prove_later(token)
            issuer = proven.issuer.url
            answer = None
            if proven.issuer.claims_from != "token":
                answer = await self._keyring.claims(IssuerUrl(issuer), token)
            return self._allowed(service, self._judge.decide(proven, self._ledger.ban_on, answer))
        except EdgeError as error:
            _refused(service, issuer, error)
            raise

    async def _prove_later(self, token: str) -> Proven:
        try:
            return self._judge.prove(token, self._keyring.keys, self._clock())
        except UnknownKey as unknown:
            await self._keyring.refresh(unknown.issuer)
        return self._judge.prove(token, self._keyring.keys, self._clock())

    def _allowed(self, service: ServiceName, judged: Judged) -> Verdict:
        verdict = self._verdict(service, judged, self._judge.scopes(judged, service))
        VERDICTS.labels(judged.principal.issuer, "allowed").inc()
        audit(
            "token",
            who=verdict.principal.for_log(),
            allowed=True,
            reason=f"mapping[{verdict.rule}]",
            account=verdict.account,
            service=service,
        )
        return verdict

    def _verdict(self, service: ServiceName, judged: Judged, scopes: tuple[Scope, ...]) -> Verdict:
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

    def _asserted(self, service: ServiceName, what: wire.ForAsserted) -> Verdict:
        until = self._clock() + self._config.identity.grant_s
        judged = assertion(
            self._config, self._judge.rules, service, what.subject_dn, what.account, until=until
        )
        refuse_banned(judged.principal, self._ledger.ban_on)
        audit(
            "assertion",
            who=judged.principal.for_log(),
            allowed=True,
            reason="identity.assertions",
            account=what.account,
            service=service,
        )
        return self._verdict(service, judged, self._judge.scopes(judged, service))

    async def _explain(self, peer: Packets, token: str) -> wire.Explained:
        if not self._callers.is_trusted(peer.uid):
            raise Denied("only root and identity's own user may ask for an explanation")
        steps: list[str] = []
        try:
            try:
                proven = self._judge.prove(token, self._keyring.keys, self._clock(), steps.append)
            except UnknownKey as unknown:
                steps.append(f"key {unknown.kid!r} is not known; its issuer is asked again")
                await self._keyring.refresh(unknown.issuer)
                proven = self._judge.prove(token, self._keyring.keys, self._clock(), steps.append)
            answer = None
            if proven.issuer.claims_from != "token":
                steps.append(f"claims come from {proven.issuer.claims_from}")
                answer = await self._keyring.claims(IssuerUrl(proven.issuer.url), token)
            judged = self._judge.decide(proven, self._ledger.ban_on, answer, steps.append)
        except EdgeError as error:
            return wire.Explained(tuple(steps), None, str(error), error.code)
        verdict = self._verdict(ADMIN, judged, ())
        return wire.Explained(tuple(steps), msgspec.structs.replace(verdict, grant=b""))

    # -- jobs -------------------------------------------------------------------------------------

    def _accepted(self, service: ServiceName, wire_form: bytes) -> tuple[Grant, Principal]:
        """The access grant that a job is accepted under, and whose. Raises Denied unless all of it fits."""
        if service != JOBS:
            raise Denied("only the job engine may ask for this")
        grant = grants.verify(wire_form, self._public, self._clock())
        if grant.kind != "access" or grant.service != service or grant.principal is None:
            raise Denied("not an access grant of the job engine")
        if not grant.allows(Action.COMPUTE_CREATE):
            raise Denied("the token has no compute.create")
        refuse_banned(grant.principal, self._ledger.ban_on)
        return grant, grant.principal

    def _job_grant(self, service: ServiceName, wire_form: bytes, job: JobId) -> wire.Grant:
        check_job_id(job)
        access, principal = self._accepted(service, wire_form)
        now = self._clock()
        return self._signed(
            Grant(
                kind="job",
                id=secrets.token_hex(8),
                service=service,
                account=access.account,
                scopes=(Scope(JOB_ACTIONS),),
                principal=principal,
                issued_at=now,
                expires_at=now + self._config.identity.job_grant_s,
                job=job,
                job_class=access.job_class,
            )
        )

    def _transfer_grant(self, service: ServiceName, what: wire.ForTransferGrant) -> wire.Grant:
        """What a long transfer is finished with: nothing that its access grant does not allow."""
        if service != STORAGE:
            raise Denied("only the storage service may ask for this")
        access = grants.verify(what.grant, self._public, self._clock())
        if access.kind != "access" or access.service != service or access.principal is None:
            raise Denied("not an access grant of the storage service")
        refuse_banned(access.principal, self._ledger.ban_on)
        scopes = tuple(Scope(access.actions_at(path), path) for path in what.paths)
        if not all(scope.actions for scope in scopes):
            raise Denied("the access grant does not cover this")
        now = self._clock()
        return self._signed(
            msgspec.structs.replace(
                access,
                kind="transfer",
                id=secrets.token_hex(8),
                scopes=scopes,
                issued_at=now,
                expires_at=now + self._config.identity.transfer_grant_s,
            )
        )

    def _standing_grant(self, service: ServiceName, what: wire.ForStandingGrant) -> wire.Grant:
        known = {rule.account for rule in self._config.mappings}
        known |= {account for one in self._config.identity.assertions for account in one.accounts}
        poll_account = self._config.accounts.poll_account
        if service != JOBS or what.account not in known | {poll_account}:
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

    def _signed(self, grant: Grant) -> wire.Grant:
        return wire.Grant(grants.sign(grant, self._key), grant.expires_at)

    async def _job_token(self, service: ServiceName, wire_form: bytes, job: JobId) -> str:
        if service != JOBS:
            raise Denied("only the job engine may ask for this")
        grant = grants.verify(wire_form, self._public, self._clock())
        if grant.kind != "job" or grant.job != job or grant.principal is None:
            raise Denied("not this job's grant")
        refuse_banned(grant.principal, self._ledger.ban_on)
        facts = JobFacts(
            job=job,
            account=grant.account,
            vo=grant.principal.vo,
            job_class=grant.job_class or JobClass.CHAOTIC,
            principal=grant.principal,
        )
        return await self._ledger.issue(facts, self._clock() + self._config.identity.job_grant_s)

    async def _job_report(self, service: ServiceName, what: wire.JobReport) -> wire.Done:
        if service != JOBS:
            raise Denied("only the job engine may report on jobs")
        if await self._ledger.report(what.job, what.nodes, ended=what.ended) and what.ended:
            self._feed.tell(feed.JobEnded(what.job))
        return wire.Done()

    def _job_facts(self, what: wire.ForJobFacts) -> JobFacts:
        facts = self._ledger.facts(what.job, what.token)
        if self._ledger.ban_on(facts.principal) is not None:
            raise Unauthenticated("not the token of a running job", detail="its owner is banned")
        return facts

    # -- bans -------------------------------------------------------------------------------------

    async def _bans(
        self, service: ServiceName, what: wire.AddBan | wire.LiftBan | wire.ListBans
    ) -> wire.Bans | wire.Done:
        if service not in (ADMIN, API):
            raise Denied("only admins may see and change bans")
        if isinstance(what, wire.ListBans):
            return wire.Bans(self._ledger.bans())
        if isinstance(what, wire.LiftBan):
            ban = await self._ledger.lift(what.id)
            self._feed.tell(feed.BanLifted(ban.id))
            _audit_ban("ban lifted", what.by, ban)
            return wire.Done()
        ban = await self._ledger.add(what.ban)
        self._feed.tell(feed.Banned(ban))
        await self._authority.banned(ban)
        _audit_ban("ban", what.by, ban)
        return wire.Bans((ban,))


class _NeedsIssuer(Exception):
    """The answer needs the fetcher: go on in a task."""


def _send(peer: Packets, number: int, what: wire.Answered) -> None:
    try:
        packet = wire.encode(wire.Answer(number, what))
        if len(packet) > packets.PACKET_BYTES:
            packet = wire.encode(wire.Answer(number, wire.failure(Busy("answer too large"))))
        peer.send(packet)
    except EdgeError as error:
        log.debug("front gone", extra={"reason": str(error)})


def _refused(service: ServiceName, issuer: str, error: EdgeError) -> None:
    VERDICTS.labels(issuer, error.code).inc()
    audit(
        "token",
        who={"issuer": issuer},
        allowed=False,
        reason=error.message,
        detail=error.detail,
        service=service,
    )


def _audit_ban(what: str, by: str, ban: grants.Ban) -> None:
    audit(what, who={"by": by}, allowed=True, reason=ban.reason, ban=msgspec.to_builtins(ban))
