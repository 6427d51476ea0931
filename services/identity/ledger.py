"""What identity must not forget: bans, and the proxy tokens of jobs.

Answered from memory; a change is on disk (group commit of ``edged.state``) before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256

import msgspec
import sqlalchemy as sa

from edged.config import Config
from edged.errors import BadRequest, NotFound, Unauthenticated
from edged.identity.grants import Ban
from edged.identity.words import JobFacts, JobId, Principal
from edged.state import Store
from edged.state.migrate import Migration

ENDED_S = 3600.0  # how long an ended job is told to those who subscribe late
FORGET_S = 60.0  # how often it is looked for what may be forgotten
JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
MAX_NODES = 4096

_META = sa.MetaData()
BANS = sa.Table(
    "bans",
    _META,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("ban", sa.LargeBinary, nullable=False),
)
JOBS = sa.Table(
    "job_tokens",
    _META,
    sa.Column("job", sa.String(128), primary_key=True),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("facts", sa.LargeBinary, nullable=False),
    sa.Column("ends_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float, nullable=True),
)
MIGRATIONS = (Migration(1, "bans and job tokens", _META.create_all),)


def store(config: Config) -> Store:
    """Identity's own database: a SQLite file beside its key; it never leaves this machine."""
    file = config.runtime.state / "identity" / "identity.sqlite"
    file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    return Store.local("identity", file, MIGRATIONS)


def create(config: Config) -> None:
    """Make the database at the first start, readable by nobody else; an older schema is left alone."""
    file = config.runtime.state / "identity" / "identity.sqlite"
    if not file.exists():
        file.touch(mode=0o600)
        store(config).prepare()


@dataclass(slots=True)
class _Job:
    secret: bytes
    facts: JobFacts
    ends_at: float


class Ledger:
    """Bans and job tokens, in memory and on disk. ``clock`` gives Unix seconds."""

    name = "identity-ledger"

    def __init__(self, state: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = state
        self._clock = clock
        self._bans: dict[str, Ban] = {}
        self._jobs: dict[JobId, _Job] = {}  # those that have not ended
        self._ended: dict[JobId, float] = {}  # and when the others did: an hour's jobs may be many
        self._forgot_at = 0.0

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with self._store.running(tasks):
            bans, self._jobs, self._ended = await self._store.read(_load)
            self._bans = {ban.id: ban for ban in bans}
            await self._forget()
            yield

    def not_ready(self) -> str | None:
        """Why a ban could not be kept now, or None."""
        return self._store.not_ready()

    # -- bans -------------------------------------------------------------------------------------

    def bans(self) -> tuple[Ban, ...]:
        """All bans that hold now."""
        now = self._clock()
        return tuple(ban for ban in self._bans.values() if ban.expires_at is None or ban.expires_at > now)

    def ban_on(self, principal: Principal) -> Ban | None:
        """The first ban that covers ``principal`` now."""
        if not self._bans:
            return None
        return next((ban for ban in self.bans() if ban.covers(principal)), None)

    async def add(self, asked: Ban) -> Ban:
        """Keep a ban, under a new id. Raises BadRequest when it would cover everybody or nobody."""
        _check(asked, self._clock())
        ban = msgspec.structs.replace(asked, id=secrets.token_hex(8), made_at=self._clock())
        row = {"id": ban.id, "ban": msgspec.msgpack.encode(ban)}
        await self._store.write(lambda connection: connection.execute(BANS.insert().values(row)) and None)
        self._bans[ban.id] = ban
        return ban

    async def lift(self, ban_id: str) -> Ban:
        """End a ban. Raises NotFound."""
        ban = self._bans.get(ban_id)
        if ban is None:
            raise NotFound("no ban with this id")
        await self._store.write(lambda c: c.execute(BANS.delete().where(BANS.c.id == ban_id)) and None)
        self._bans.pop(ban_id, None)
        return ban

    # -- job tokens -------------------------------------------------------------------------------

    async def issue(self, facts: JobFacts, ends_at: float) -> str:
        """A new secret for a job; only its hash is kept. An earlier one of the same job dies."""
        token = secrets.token_urlsafe(24)
        job = _Job(_hash(token), facts, ends_at)
        await self._write_job(facts.job, job, {"ended_at": None})
        self._jobs[facts.job] = job
        self._ended.pop(facts.job, None)
        return token

    async def report(self, name: JobId, nodes: tuple[str, ...], *, ended: bool) -> bool:
        """Where a job runs, or that it ended; True when that is news."""
        job = self._jobs.get(name)
        if job is None or len(nodes) > MAX_NODES:
            return False
        if not ended and nodes == job.facts.nodes:
            return False
        facts = msgspec.structs.replace(job.facts, nodes=nodes or job.facts.nodes)
        known = _Job(job.secret, facts, job.ends_at)
        now = self._clock()
        # where it runs may be written after its end was: that must not undo it
        await self._write_job(name, known, {"ended_at": now} if ended else {})
        if ended:
            self._jobs.pop(name, None)
            self._ended[name] = now
        elif name in self._jobs:
            self._jobs[name] = known
        await self._forget()
        return True

    def facts(self, name: JobId, token: str) -> JobFacts:
        """Whom a job token speaks for. Raises Unauthenticated, never saying which part was wrong."""
        job = self._jobs.get(name)
        right = hmac.compare_digest(_hash(token), job.secret if job is not None else bytes(32))
        if job is None or not right or job.ends_at <= self._clock():
            raise Unauthenticated("not the token of a running job")
        return job.facts

    def ended(self) -> tuple[JobId, ...]:
        """Jobs that ended within the last hour."""
        return tuple(self._ended)

    async def _write_job(self, name: JobId, job: _Job, end: Mapping[str, float | None]) -> None:
        row = {
            "secret": job.secret,
            "facts": msgspec.msgpack.encode(job.facts),
            "ends_at": job.ends_at,
            **end,
        }

        def write(connection: sa.Connection) -> None:
            changed = connection.execute(JOBS.update().where(JOBS.c.job == name).values(row))
            if changed.rowcount == 0:
                connection.execute(JOBS.insert().values(job=name, **row))

        await self._store.write(write)

    async def _forget(self) -> None:
        """Drop jobs that ended long ago or outlived their grant, and bans that ran out. At most once a minute."""
        now = self._clock()
        if now < self._forgot_at + FORGET_S:
            return
        self._forgot_at = now
        jobs = [name for name, job in self._jobs.items() if job.ends_at <= now]
        jobs += [name for name, ended_at in self._ended.items() if ended_at + ENDED_S <= now]
        bans = [ban.id for ban in self._bans.values() if ban.expires_at is not None and ban.expires_at <= now]
        if not jobs and not bans:
            return

        def delete(connection: sa.Connection) -> None:
            for job in jobs:
                connection.execute(JOBS.delete().where(JOBS.c.job == job))
            for ban in bans:
                connection.execute(BANS.delete().where(BANS.c.id == ban))

        await self._store.write(delete)
        for job in jobs:
            self._jobs.pop(job, None)
            self._ended.pop(job, None)
        for ban in bans:
            self._bans.pop(ban, None)


def check_job_id(job: JobId) -> None:
    """A job id is one path segment of plain letters. Raises BadRequest."""
    if not JOB_ID.fullmatch(job):
        raise BadRequest("not a job id")


def _check(ban: Ban, now: float) -> None:
    words = (ban.issuer, ban.subject, ban.group, ban.client, ban.token_id)
    if not any((ban.subject, ban.group.strip("/"), ban.client, ban.token_id)):
        # an issuer alone is a matter of [[issuer]]; empty words would cover nobody
        raise BadRequest("a ban needs a subject, a group, a client or a token id")
    if ban.subject and not ban.issuer:
        raise BadRequest("a ban by subject needs its issuer too: two issuers may know the same subject")
    if any(len(word) > 1024 or not word.isprintable() for word in (*words, ban.reason)):
        raise BadRequest("a ban's words are plain text of at most 1024 characters")
    if ban.expires_at is not None and ban.expires_at <= now:
        raise BadRequest("a ban cannot end in the past")


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "replace")).digest()


def _load(connection: sa.Connection) -> tuple[list[Ban], dict[JobId, _Job], dict[JobId, float]]:
    bans = [msgspec.msgpack.decode(row.ban, type=Ban) for row in connection.execute(sa.select(BANS))]
    jobs: dict[JobId, _Job] = {}
    ended: dict[JobId, float] = {}
    for row in connection.execute(sa.select(JOBS)):
        if row.ended_at is not None:
            ended[JobId(row.job)] = row.ended_at
        else:
            facts = msgspec.msgpack.decode(row.facts, type=JobFacts)
            jobs[JobId(row.job)] = _Job(row.secret, facts, row.ends_at)
    return bans, jobs, ended
