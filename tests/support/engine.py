"""A job engine with its real journal, on an identity that signs whatever comes and files that keep nothing."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from threading import Event
from typing import Any, cast

import msgspec
import sqlalchemy as sa

from edged import config as configuration
from edged.accounts import packets
from edged.accounts.api import Entry, Kind, OpenFile
from edged.errors import Denied, NotFound
from edged.identity.client import OnBan, Verdicts
from edged.identity.words import AccountName, JobClass, JobId, Verdict, VoName
from services.jobs import journal
from services.jobs.batch.protocol import (
    BatchJob,
    BatchRef,
    BatchState,
    BatchSystem,
    Cause,
    Submission,
    Submitted,
    Sweep,
    unique_name,
)
from services.jobs.engine import Engine
from services.jobs.model import Description, Job
from services.jobs.sessions import Sessions
from tests.unit.jobs.jobs import OWNER

CHANGES = ("INSERT", "UPDATE", "DELETE")
BALLAST = "BEGIN INSERT INTO ballast VALUES (zeroblob(10000000)); END"
WAITING = Description(executable="true", inputs=("data",), key="once")
ALICE = Verdict(
    principal=OWNER,
    account=AccountName("cmsprd"),
    job_class=JobClass.PRODUCTION,
    vo=VoName("cms"),
    capabilities=(),
    grant=b"",
    expires_at=2e9,
    token_expires_at=2e9,
)
AS_ATLAS = msgspec.structs.replace(ALICE, account=AccountName("atlprd"), vo=VoName("atlas"))


class Identity:
    """Signs for everybody; a test tells it of bans."""

    def __init__(self) -> None:
        self.ban: OnBan

    def not_ready(self) -> str | None:
        return None

    async def job_grant(self, _verdict: Verdict, _job: JobId) -> bytes:
        return b"grant"

    async def standing_grant(self, _account: AccountName) -> bytes:
        return b"standing"

    async def report_job(self, _job: JobId, _nodes: tuple[str, ...], *, ended: bool) -> None:
        return None

    def on_ban(self, callback: OnBan) -> None:
        self.ban = callback


class Uploads:
    """Takes every input and forgets it; ``own``: edged's own files, as jobs wrote them."""

    def __init__(self) -> None:
        self.own: dict[str, bytes] = {}

    async def open_own(self, _grant: bytes, _job: JobId, name: str) -> OpenFile:
        if name not in self.own:
            raise NotFound("no such file")
        fd = packets.in_memory(self.own[name])
        return OpenFile(fd, Entry(name, Kind.FILE, len(self.own[name]), 0, 0, 0, 0, 0o600, 0, 0, 1))

    async def put(self, _grant: bytes, _job: JobId, _name: str, _content: Any, _limit: int, **_: Any) -> None:
        return None

    async def create(self, _grant: bytes, _job: JobId, _files: object) -> None:
        return None

    async def reopen(self, _grant: bytes, _job: JobId) -> None:
        return None

    async def remove(self, _grant: bytes, _job: JobId) -> None:
        return None


class Queue:
    """A batch system whose queue is a dictionary.

    ``answers``: submissions are answered while it is set. ``forbidden``: nobody may look for jobs by name.
    """

    name = "local"

    def __init__(self) -> None:
        self.jobs: dict[str, BatchJob] = {}
        self.submissions: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.forbidden = False

    async def submit(self, _grant: bytes, submission: Submission) -> Submitted:
        ref = BatchRef("here", str(len(self.submissions) + 1), time.time(), submission.name)
        self.submissions.append(submission.job)
        self.jobs[submission.name] = BatchJob(ref=ref, state=BatchState.QUEUED, raw_state="PENDING")
        await self.answers.wait()
        return Submitted(ref)

    async def find(self, _grant: bytes, job: str, _since: float) -> list[BatchJob]:
        if self.forbidden:
            raise Denied("not allowed")
        return [self.jobs[name] for name in (unique_name(job),) if name in self.jobs]

    async def sees_all(self, _grant: bytes) -> bool:
        return True

    async def sweep(self, _grant: bytes, _accounts: Sequence[str] = ()) -> Sweep:
        records = {msgspec.json.encode(job) for job in self.jobs.values()}
        return Sweep(time.time(), frozenset(records), msgspec.json.Decoder(BatchJob).decode)

    async def finals(self, _grant: bytes, refs: Sequence[BatchRef]) -> list[BatchJob]:
        return [self.jobs[ref.name] for ref in refs if ref.name in self.jobs]

    def end(self, job: Job, exit_code: int) -> None:
        """It ended, by the batch system's word."""
        name = unique_name(job.id)
        self.jobs[name] = msgspec.structs.replace(
            self.jobs[name],
            state=BatchState.FAILED if exit_code else BatchState.FINISHED,
            raw_state="FAILED" if exit_code else "COMPLETED",
            cause=Cause.EXIT if exit_code else Cause.NONE,
            exit_code=exit_code,
        )

    async def cancel(self, _grant: bytes, ref: BatchRef) -> None:
        self.jobs[ref.name] = msgspec.structs.replace(
            self.jobs[ref.name], state=BatchState.KILLED, raw_state="CANCELLED"
        )


class Subject:
    """An engine, and what it stands on."""

    def __init__(self, place: Path, *, there: Queue | None = None, **jobs: Any) -> None:
        settings = {
            "site": {"name": "TEST"},
            "runtime": {"state": str(place)},
            "jobs": {"batch": "local", "queue": [{"name": "cpu"}], **jobs},
        }
        config = configuration.parse(settings)
        self.queue = there or Queue()
        self.identity = Identity()
        self.uploads = Uploads()
        self.store = journal.open_store(config)
        self.engine = Engine(
            config,
            self.store,
            cast(Verdicts, self.identity),
            sessions=cast(Sessions, self.uploads),
            batches={"local": cast(BatchSystem, self.queue)},
            files_of=lambda *_: asyncio.sleep(0, {}),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        async with asyncio.TaskGroup() as tasks, self.engine.running(tasks):
            yield self.engine

    @contextmanager
    def slow_disk(self) -> Iterator[None]:
        """Nothing is written while entered."""
        go_on = Event()
        task = asyncio.ensure_future(self.store.write(lambda _connection: go_on.wait(20)))
        try:
            yield
        finally:
            go_on.set()
            task.add_done_callback(lambda done: done.exception())

    @asynccontextmanager
    async def full_disk(self) -> AsyncIterator[None]:
        """No job in the journal can be changed while entered: SQLite itself says that the disk is full."""

        def small(connection: sa.Connection) -> None:
            connection.exec_driver_sql("PRAGMA max_page_count = 500")

        sa.event.listen(self.store.engine, "begin", small)
        await self._run("CREATE TABLE IF NOT EXISTS ballast (content)")
        triggers = {
            f"{what}_{where}": f"{what} ON {where}" for what in CHANGES for where in ("jobs", "usage")
        }
        for name, when in triggers.items():
            await self._run(f"CREATE TRIGGER {name} BEFORE {when} {BALLAST}")
        try:
            yield
        finally:
            for name in triggers:
                await self._run(f"DROP TRIGGER {name}")

    async def _run(self, statement: str) -> None:
        """Not through the store: a write that finds no room takes those of its group with it."""

        def work() -> None:
            with closing(sqlite3.connect(str(self.store.engine.url.database), timeout=20)) as own:
                own.execute(statement)
                own.commit()

        await asyncio.to_thread(work)

    async def journalled(self, job: Job) -> Job | None:
        """The job as it would be after a restart."""
        return {kept.id: kept for kept, _ in await self.store.read(journal.load)}.get(job.id)

    async def accept(self, verdict: Verdict = ALICE, description: Description = WAITING) -> Job:
        (answer,) = await self.engine.accept(verdict, [description])
        assert isinstance(answer, Job), answer
        return answer
