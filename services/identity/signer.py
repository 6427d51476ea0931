"""The signer: answers fronts over its socket with verdicts and signed grants. It meets no network."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edged import metrics
from edged.config import Config
from edged.errors import Busy, Denied, EdgeError, Unauthenticated
from edged.identity import feed, grants, packets, wire
from edged.identity.judge import JOBS, Judge, Judged, Proven, refuse_banned
from edged.identity.packets import Packets
from edged.identity.tokens import UnknownKey
from edged.identity.words import IssuerUrl, JobFacts, ServiceName, Verdict
from edged.logs import audit, get_logger
from services.identity.asserting import assertion
from services.identity.authority import Authority
from services.identity.callers import ADMIN, API, Callers
from services.identity.feeding import FeedServer
from services.identity.granting import Granting
from services.identity.keyring import Keyring
from services.identity.ledger import Ledger

log = get_logger("services.identity.signer")

UNDER_WAY = 4096  # asks that wait for an issuer or the disk; of one service, half as many

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
        self._granting = Granting(config, key, ledger, clock)
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
        self._waiting: Counter[ServiceName] = Counter()  # of those, whose

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        self._tasks = tasks
        listener = self._inherited or packets.bind(self._config.runtime.run / wire.SOCKET)
        async with self._feed.running(tasks), packets.serving(listener, self._asked, on_open=self._met):
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
        self._granting.reload(config)
        self._authority.reload(config)

    def _state(self) -> list[feed.AnyMessage]:
        bans = [feed.Banned(ban) for ban in self._ledger.bans()]
        return [*bans, *(feed.JobEnded(job) for job in self._ledger.ended())]

    # -- asks -------------------------------------------------------------------------------------

    def _met(self, peer: Packets) -> None:
        """Strangers do not even take a place."""
        if not self._callers.may_listen(peer.uid):
            peer.close()

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
        try:
            answer = self._at_once(service, ask.what)
        except EdgeError as error:
            answer = wire.failure(error)
        if answer is not None:
            _send(peer, ask.number, answer)
            return
        if len(self._under_way) >= UNDER_WAY or self._waiting[service] >= UNDER_WAY // 2:
            _send(peer, ask.number, wire.failure(Busy("identity has too much under way")))
            return
        self._waiting[service] += 1
        self._start(self._later(peer, service, ask)).add_done_callback(lambda _: self._answered(service))

    def _at_once(self, service: ServiceName, what: wire.Asked) -> wire.Answered | None:
        """The answer, or None when an issuer or the disk has to be asked for it."""
        match what:
            case wire.ForVerdict(token):
                try:
                    return wire.Judged(self._verdict_now(service, token))
                except _NeedsIssuer:
                    return None
            case wire.ForJobFacts():
                return wire.Facts(self._job_facts(what))
            case wire.ForJobGrant():
                return self._granting.job(service, what)
            case wire.ForTransferGrant():
                return self._granting.transfer(service, what)
            case wire.ForStandingGrant():
                return self._granting.standing(service, what)
            case _:
                return None

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
            case wire.ForJobToken():
                return wire.Told(await self._granting.job_token(service, what))
            case wire.JobReport():
                return await self._job_report(service, what)
            case wire.AddBan() | wire.LiftBan() | wire.ListBans():
                return await self._bans(service, what)
            case wire.Explain(token):
                return await self._explain(peer, token)
            case _:
                return await self._credential(service, what)

    async def _credential(self, service: ServiceName, what: wire.Asked) -> wire.Answered:
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
            case _:
                raise Denied("nothing of ours", detail=type(what).__name__)

    def _answered(self, service: ServiceName) -> None:
        self._waiting[service] -= 1

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            raise RuntimeError("not running")
        task = self._tasks.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

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
        verdict = self._granting.verdict(service, judged, self._judge.scopes(judged, service))
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

    def _asserted(self, service: ServiceName, what: wire.ForAsserted) -> Verdict:
        judged = assertion(
            self._config,
            self._judge.rules,
            service,
            what.subject_dn,
            what.account,
            until=math.inf,  # there is no token; what it is asserted by ends with the connection
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
        return self._granting.verdict(service, judged, self._judge.scopes(judged, service))

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
        verdict = self._granting.verdict(ADMIN, judged, ())
        return wire.Explained(tuple(steps), msgspec.structs.replace(verdict, grant=b""))

    # -- jobs -------------------------------------------------------------------------------------

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
