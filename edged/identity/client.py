"""How a front gets verdicts: over the identity socket, remembered until they end or a ban comes."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from hashlib import sha256
from typing import Protocol, TypeVar

import msgspec

from edged import metrics
from edged.config import Config
from edged.errors import Denied, EdgeError, Unauthenticated, Unavailable
from edged.identity import feed, packets, wire
from edged.identity.grants import Ban
from edged.identity.packets import Packets
from edged.identity.remembered import Remembered
from edged.identity.subscription import subscribed
from edged.identity.words import AccountName, Action, JobFacts, JobId, Principal, ServiceName, Verdict
from edged.logs import get_logger
from edged.sshca import Certificate, SlurmToken

__all__ = ["IdentityClient", "JobFacts", "Verdicts"]

log = get_logger("edged.identity.client")

ANSWER_S = 15.0  # an issuer's userinfo may take its time; identity gives up before
CATCH_UP_S = 0.5  # how long a request waits for a late heartbeat before it is refused
FACTS_S = 5.0
RECONNECT_S = 0.1

LOOKUPS = metrics.counter("identity_verdict_lookups", "Verdicts asked by this front.", ("found",))
FEED_AGE = metrics.gauge(
    "identity_feed_connected",
    "1 while this front hears the ban feed.",
    ("service",),
    across=metrics.Across.LEAST,
)

Covers = Callable[[Principal], bool]
OnBan = Callable[[Covers, bool], None]
OnJobEnd = Callable[[JobId], None]
Reply = TypeVar("Reply")


class Verdicts(Protocol):
    """What services use of identity. ``IdentityClient`` is the real one, tests may run a small server."""

    name: str

    def running(self, tasks: asyncio.TaskGroup) -> AbstractAsyncContextManager[None]: ...

    def not_ready(self) -> str | None: ...

    async def verdict(self, token: str) -> Verdict:
        """The verdict on a bearer token. Raises Unauthenticated, Denied or Unavailable (feed lost > 1 s)."""
        ...

    async def asserted(self, subject_dn: str, account: AccountName) -> Verdict:
        """A verdict on an identity this front verified itself, for accounts [[identity.assertions]] lists."""
        ...

    async def job_grant(self, verdict: Verdict, job: JobId) -> bytes:
        """A signed job grant for a job accepted under ``verdict``."""
        ...

    async def transfer_grant(self, grant: bytes, paths: tuple[str, ...]) -> bytes:
        """A grant to finish at ``paths`` (namespace paths) what was begun under an access grant."""
        ...

    async def standing_grant(self, account: AccountName) -> bytes:
        """A grant that only polls, for sweeps under the poll account (or each account)."""
        ...

    def on_ban(self, callback: OnBan) -> None:
        """``callback(covers, keep_jobs)`` within a second of a ban; ``covers(principal)`` tells whom."""
        ...

    async def issue_job_token(self, grant: bytes, job: JobId) -> str:
        """The job's own proxy token, for its job grant: worthless outside that job, dead at its end.

        A second one ends the first.
        """
        ...

    async def report_job(self, job: JobId, nodes: tuple[str, ...], *, ended: bool) -> None:
        """The engine tells where a job runs, and that it ended."""
        ...

    async def job_facts(self, job: JobId, token: str) -> JobFacts:
        """Whom a job token speaks for. Raises Unauthenticated when unknown, ended, banned or wrong."""
        ...

    def on_job_end(self, callback: OnJobEnd) -> None:
        """``callback(job)`` within a second of the engine's report that a job ended."""
        ...


class IdentityClient:
    """Asks identity over its socket and listens to its ban feed; both come back by themselves."""

    name = "identity-client"

    def __init__(self, config: Config, service: ServiceName) -> None:
        self._service = service
        self._asks = config.runtime.run / wire.SOCKET
        self._feed = config.runtime.run / feed.SOCKET
        self._token_bytes = config.identity.token_bytes
        self._verdicts: Remembered[Verdict] = Remembered(config.identity.verdict_cache)
        # apart from tokens: no token, whatever it spells, may find an assertion's verdict
        self._asserted: Remembered[Verdict] = Remembered(config.identity.verdict_cache)
        self._facts: Remembered[JobFacts] = Remembered(config.identity.verdict_cache)
        self._standing: Remembered[bytes] = Remembered(4096)
        self._first_sights: dict[bytes, asyncio.Future[Verdict]] = {}
        self._revocations = feed.Revocations()
        self._fresh = asyncio.Event()
        self._acted: set[str] = set()
        self._on_ban: list[OnBan] = []
        self._on_job_end: list[OnJobEnd] = []
        self._connection: Packets | None = None
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[wire.Answered]] = {}

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        listening = tasks.create_task(self._listen())
        with suppress(TimeoutError):  # identity may start after us: not_ready() tells
            async with asyncio.timeout(feed.STALE_S):
                await self._fresh.wait()
        try:
            yield
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            if self._connection is not None:
                self._connection.close()

    def not_ready(self) -> str | None:
        """Whether the ban feed is heard."""
        return None if self._usable() else "identity does not answer: the ban feed is cut"

    async def verdict(self, token: str) -> Verdict:
        """The verdict on a bearer token. Raises Unauthenticated, Denied or Unavailable (feed lost > 1 s)."""
        if len(token) > self._token_bytes or not token.isascii():
            raise Unauthenticated(f"not a token of at most {self._token_bytes} bytes")
        key = sha256(token.encode()).digest()
        found = self._verdicts.get(key, time.time())
        if found is not None and self._revocations.usable(time.monotonic()):
            _FOUND.inc()
            return found
        return await self._first_sight(key, token)

    async def asserted(self, subject_dn: str, account: AccountName) -> Verdict:
        """A verdict on an identity this front verified itself, for accounts [[identity.assertions]] lists."""
        await self._require_feed()
        key = sha256(f"{account}\0{subject_dn}".encode("utf-8", "replace")).digest()
        found = self._asserted.get(key, time.time())
        if found is None:
            answer = await self._ask(wire.ForAsserted(subject_dn, account), wire.Judged)
            found = self._remember(self._asserted, key, answer.verdict)
        return found

    async def job_grant(self, verdict: Verdict, job: JobId) -> bytes:
        """A signed job grant for a job accepted under ``verdict``."""
        await self._require_feed()
        return (await self._ask(wire.ForJobGrant(verdict.grant, job), wire.Grant)).wire

    async def transfer_grant(self, grant: bytes, paths: tuple[str, ...]) -> bytes:
        """A grant to finish at ``paths`` (namespace paths) what was begun under an access grant."""
        await self._require_feed()
        return (await self._ask(wire.ForTransferGrant(grant, paths), wire.Grant)).wire

    async def standing_grant(self, account: AccountName) -> bytes:
        """A grant that only polls, for sweeps under the poll account (or each account)."""
        key = account.encode()
        found = self._standing.get(key, time.time())
        if found is None:
            answer = await self._ask(wire.ForStandingGrant(account), wire.Grant)
            found = answer.wire
            lasts = answer.expires_at - time.time()
            self._standing.put(key, found, answer.expires_at - lasts / 4)
        return found

    def on_ban(self, callback: OnBan) -> None:
        """``callback(covers, keep_jobs)`` within a second of a ban; ``covers(principal)`` tells whom."""
        self._on_ban.append(callback)

    async def issue_job_token(self, grant: bytes, job: JobId) -> str:
        """The job's own proxy token, for its job grant: worthless outside that job, dead at its end."""
        return (await self._ask(wire.ForJobToken(grant, job), wire.Told)).text

    async def report_job(self, job: JobId, nodes: tuple[str, ...], *, ended: bool) -> None:
        """The engine tells where a job runs, and that it ended."""
        await self._ask(wire.JobReport(job, nodes, ended), wire.Done)

    async def job_facts(self, job: JobId, token: str) -> JobFacts:
        """Whom a job token speaks for. Raises Unauthenticated when unknown, ended, banned or wrong."""
        await self._require_feed()
        if len(token) > 1024 or len(job) > 256 or not (token.isascii() and job.isascii()):
            raise Unauthenticated("not a job's token")
        key = sha256(f"{job}\0{token}".encode()).digest()
        found = self._facts.get(key, time.time())
        if found is None:
            found = (await self._ask(wire.ForJobFacts(job, token), wire.Facts)).facts
            if self._revocations.ban_on(found.principal, time.time()) is not None:
                raise Unauthenticated("the job's owner is banned")
            self._facts.put(key, found, time.time() + FACTS_S)
        return found

    def on_job_end(self, callback: OnJobEnd) -> None:
        """``callback(job)`` within a second of the engine's report that a job ended."""
        self._on_job_end.append(callback)

    async def require_unbanned(self, principal: Principal) -> None:
        """Raises Denied for who is banned, Unavailable when bans could have been missed."""
        await self._require_feed()
        if (ban := self._revocations.ban_on(principal, time.time())) is not None:
            raise Denied("this identity is banned at this site", detail=f"ban {ban.id}")

    async def add_ban(self, ban: Ban, by: str) -> Ban:
        """Ban whom ``ban`` says; returns it with its id. Durable and told to all when this returns."""
        return (await self._ask(wire.AddBan(ban, by), wire.Bans)).bans[0]

    async def lift_ban(self, ban_id: str, by: str) -> None:
        """End a ban. Raises NotFound."""
        await self._ask(wire.LiftBan(ban_id, by), wire.Done)

    async def bans(self) -> tuple[Ban, ...]:
        """All bans that hold."""
        return (await self._ask(wire.ListBans(), wire.Bans)).bans

    async def explain(self, token: str) -> wire.Explained:
        """Every step of a decision. Only root and identity's own user may ask."""
        return await self._ask(wire.Explain(token), wire.Explained)

    # -- credentials of accounts, for sites reached from outside --------------------------------------

    async def ssh_certificate(
        self, grant: bytes, cluster: str, public_key: str, action: Action
    ) -> Certificate:
        """A short certificate for the account of a job or standing grant. Raises Denied."""
        await self._require_feed()
        return await self._ask(wire.ForSshCertificate(grant, cluster, public_key, action), Certificate)

    async def slurm_token(self, grant: bytes, cluster: str, action: Action) -> SlurmToken:
        """A JWT for slurmrestd, for the account of a job or standing grant. Raises Denied."""
        await self._require_feed()
        return await self._ask(wire.ForSlurmToken(grant, cluster, action), SlurmToken)

    async def own_certificate(
        self, verdict: Verdict, public_key: str, source: str, life_s: float
    ) -> Certificate:
        """A certificate for a person, where [identity.ssh] allows it. Raises BadRequest, Denied."""
        await self._require_feed()
        return await self._ask(wire.ForOwnCertificate(verdict.grant, public_key, source, life_s), Certificate)

    async def revocations(self) -> wire.Revocations:
        """The SSH CA's public key and its revocation list."""
        return await self._ask(wire.ForRevocations(), wire.Revocations)

    async def revoke_certificate(self, serial: int, by: str) -> None:
        """Put a certificate on the revocation list. Raises NotFound. Only for admins."""
        await self._ask(wire.RevokeCertificate(serial, by), wire.Done)

    # -- verdicts ---------------------------------------------------------------------------------

    async def _first_sight(self, key: bytes, token: str) -> Verdict:
        """One ask for a token, however many requests carry it at once."""
        await self._require_feed()
        flight = self._first_sights.get(key)
        if flight is not None:
            _SHARED.inc()
            return await asyncio.shield(flight)
        flight = asyncio.get_running_loop().create_future()
        self._first_sights[key] = flight
        _ASKED.inc()
        try:
            answer = await self._ask(wire.ForVerdict(token), wire.Judged)
            verdict = self._remember(self._verdicts, key, answer.verdict)
        except BaseException as error:
            _hand_on(flight, error)
            raise
        finally:
            del self._first_sights[key]
        flight.set_result(verdict)
        return verdict

    def _remember(self, where: Remembered[Verdict], key: bytes, verdict: Verdict) -> Verdict:
        """Keep a verdict, unless a ban overtook it on the way."""
        now = time.time()
        if (ban := self._revocations.ban_on(verdict.principal, now)) is not None:
            raise Denied("this identity is banned at this site", detail=f"ban {ban.id}")
        ends = verdict.expires_at
        if (
            ends < verdict.token_expires_at
        ):  # renew before the grant ends, so that no request holds a dead one
            ends -= min(30.0, (ends - now) / 4)
        where.put(key, verdict, ends)
        return verdict

    def _usable(self) -> bool:
        return self._revocations.usable(time.monotonic())

    async def _require_feed(self) -> None:
        """Raise Unavailable when bans could have been missed (DESIGN §1: more than a second)."""
        if self._usable():
            return
        self._fresh.clear()
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self._fresh.wait()
        except TimeoutError:
            raise Unavailable("identity does not answer", detail="ban feed cut for more than 1 s") from None

    # -- the feed ---------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                async with subscribed(self._feed) as batches:
                    FEED_AGE.labels(self._service).set(1)
                    async for messages in batches:
                        for message in messages:
                            self._hear(message)
            except EdgeError as error:
                log.debug("ban feed", extra={"reason": str(error)})
            FEED_AGE.labels(self._service).set(0)
            await asyncio.sleep(RECONNECT_S)

    def _hear(self, message: feed.AnyMessage) -> None:
        self._revocations.apply(message)
        match message:
            case feed.Banned(ban):
                self._enforce(ban)
            case feed.BanLifted(ban_id):
                self._acted.discard(ban_id)
            case feed.JobEnded(job):
                self._facts.drop(lambda facts: facts.job == job)
                for callback in self._on_job_end:
                    callback(job)
        if self._usable():
            self._fresh.set()

    def _enforce(self, ban: Ban) -> None:
        """Forget whom the ban covers and tell the front, once for each ban."""
        if ban.id in self._acted or (ban.expires_at is not None and ban.expires_at <= time.time()):
            return
        self._acted.add(ban.id)
        for held in (self._verdicts, self._asserted):
            held.drop(lambda verdict: ban.covers(verdict.principal))
        self._facts.drop(lambda facts: ban.covers(facts.principal))
        for callback in self._on_ban:
            callback(ban.covers, ban.keep_jobs)

    # -- asking -----------------------------------------------------------------------------------

    async def _ask(self, what: wire.Asked, wanted: type[Reply]) -> Reply:
        number = next(self._numbers)
        answered: asyncio.Future[wire.Answered] = asyncio.get_running_loop().create_future()
        self._pending[number] = answered
        try:
            self._connected().send(wire.encode(wire.Ask(number, what)))
            # one timer each, not asyncio.timeout: half the price, and this is under every first sight
            timer = answered.get_loop().call_later(ANSWER_S, _too_late, answered)
            answer = await answered
            timer.cancel()
        finally:
            del self._pending[number]
        if isinstance(answer, wire.Failure):
            raise wire.raised(answer)
        if not isinstance(answer, wanted):
            raise Unavailable("identity answers what was not asked", detail=type(answer).__name__)
        return answer

    def _connected(self) -> Packets:
        """The connection, made when it is needed. Raises Unavailable when identity is not there."""
        if self._connection is None or self._connection.closed:
            connection = packets.connect(self._asks, self._answered, self._lost)
            connection.send(wire.encode(wire.Hello(self._service)))
            self._connection = connection
        return self._connection

    def _answered(self, connection: Packets, packet: memoryview) -> None:
        try:
            answer = wire.decode_from_identity(packet)
        except msgspec.MsgspecError as error:
            log.error("identity speaks another language", extra={"reason": str(error)})  # noqa: TRY400
            connection.close()
            return
        waiting = self._pending.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.what)

    def _lost(self, connection: Packets) -> None:
        if connection is not self._connection:
            return
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("identity went away; ask again"))


def _too_late(answered: asyncio.Future[wire.Answered]) -> None:
    if not answered.done():
        answered.set_exception(Unavailable("identity does not answer in time"))


def _hand_on(flight: asyncio.Future[Verdict], error: BaseException) -> None:
    """Give the others the error, but never somebody else's cancellation."""
    shared = (
        error if isinstance(error, EdgeError) else Unavailable("the first request for this token was cut off")
    )
    flight.set_exception(shared)
    flight.exception()  # nobody else may be waiting: that is no lost error


_FOUND, _ASKED, _SHARED = LOOKUPS.labels("cache"), LOOKUPS.labels("asked"), LOOKUPS.labels("shared")
