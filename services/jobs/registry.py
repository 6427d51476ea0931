"""All jobs in memory, and the one way a job changes: remembered, counted, written, told.

Status is answered from here. Only ``Registry.move`` and its kin change a job's state.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from edged import metrics
from edged.config.jobs import Limit
from edged.errors import EdgeError, NotFound, Unavailable
from edged.identity.words import AccountName, JobId, Verdict
from edged.lifecycle import Background
from edged.logs import get_logger
from edged.state import Store
from services.jobs import journal
from services.jobs.model import IN_BATCH, Job, State, Step
from services.jobs.policy import Load
from services.jobs.tally import Tally

log = get_logger("edged.jobs")

MAX_HISTORY = 40
JOBS = metrics.gauge("jobs", "Jobs not yet cleaned, by state.", ("state",))
ENDED = metrics.counter("jobs_ended", "Jobs ended, by final state and cause.", ("state", "cause"))

Listener = Callable[[Job, State | None], None]


class Registry:
    """Every job not yet cleaned."""

    def __init__(self, store: Store, limits: tuple[Limit, ...], max_jobs: int) -> None:
        self.store = store
        self.load = Load(limits, max_jobs)
        self.tally = Tally()
        self._jobs: dict[JobId, Job] = {}
        self._grants: dict[JobId, bytes] = {}
        self._by_account: dict[AccountName, list[JobId]] = {}
        self._by_key: dict[str, JobId] = {}
        self._in_batch: dict[str, dict[JobId, Job]] = {}
        self._arrays: dict[str, dict[JobId, Job]] = {}
        self._listeners: list[Listener] = []
        self._watches: dict[AccountName, set[asyncio.Queue[Job]]] = {}
        self._writing: dict[JobId, asyncio.Task[None]] = {}
        self._unwritten: set[JobId] = set()  # the journal has an older state of these ...
        self._disowned: set[JobId] = set()  # ... and perhaps has these, which nobody was promised

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def get(self, job: JobId) -> Job | None:
        """The job, whoever owns it."""
        return self._jobs.get(job)

    def of(self, verdict: Verdict, job: str) -> Job:
        """The caller's job. NotFound for one of another account or VO: they may not know it exists."""
        found = self._jobs.get(JobId(job))
        if found is None or found.account != verdict.account or found.vo != verdict.vo:
            raise NotFound("no such job")
        return found

    def by_key(self, key: str | None) -> Job | None:
        """The job once submitted with this idempotency key."""
        found = self._by_key.get(key) if key else None
        return self._jobs[found] if found else None

    def grant(self, job: JobId) -> bytes:
        """The job grant signed at submission. Raises NotFound: whoever holds a job may be slower than a clean."""
        try:
            return self._grants[job]
        except KeyError:
            raise NotFound("no such job") from None

    def regrant(self, job: JobId, grant: bytes) -> None:
        """A new job grant, for a job that begins again."""
        self._grants[job] = grant

    def page(self, account: AccountName, after: str, newest_first: bool = False) -> Iterator[Job]:
        """An account's jobs in order of submission, those after the cursor ``after``."""
        ids = self._by_account.get(account, [])
        if newest_first:
            end = bisect.bisect_left(ids, after) if after else len(ids)
            return (self._jobs[ids[index]] for index in range(end - 1, -1, -1))
        start = bisect.bisect_right(ids, after) if after else 0
        return (self._jobs[ids[index]] for index in range(start, len(ids)))

    def in_batch(self, batch: str) -> dict[JobId, Job]:
        """The jobs that this batch system has now."""
        return dict(self._in_batch.get(batch, ()))

    def array(self, family: str) -> Iterable[Job]:
        """The elements of one array."""
        return self._arrays.get(family, {}).values()

    def listen(self, listener: Listener) -> None:
        """``listener(job, state before)`` runs at every change; before is None for a new job."""
        self._listeners.append(listener)

    def restore(self, jobs: list[tuple[Job, bytes]]) -> None:
        """Fill the memory from the journal at start."""
        for job, grant in jobs:
            self._remember(job, grant)

    def add(self, job: Job, grant: bytes) -> None:
        """Remember a job that is safely in the journal."""
        self._remember(job, grant)
        self._tell(job, None)

    def _remember(self, job: Job, grant: bytes) -> None:
        self._jobs[job.id] = job
        self._grants[job.id] = grant
        bisect.insort(self._by_account.setdefault(job.account, []), job.id)
        if key := journal.owner_key(job):
            self._by_key[key] = job.id
        if job.array:
            self._arrays.setdefault(job.array, {})[job.id] = job
        self._count(job, None, job.state)

    async def forget(self, job: Job) -> None:
        """Remove a cleaned job from the journal and from memory."""
        await self.settled(job.id)
        await self.store.write(journal.delete(job.id))
        if self._jobs.pop(job.id, None) is None:
            return
        del self._grants[job.id]
        ids = self._by_account[job.account]
        ids.pop(bisect.bisect_left(ids, job.id))
        if key := journal.owner_key(job):
            self._by_key.pop(key, None)
        if job.array:
            family = self._arrays[job.array]
            del family[job.id]
            if not family:
                del self._arrays[job.array]
        self._count(job, job.state, None)

    def _count(self, job: Job, before: State | None, after: State | None) -> None:
        """Every index and count that follows the states."""
        self.load.moved(job, before, after)
        self.tally.moved(job, before, after)
        if before is not None:
            JOBS.labels(before.value).dec()
        if after is not None:
            JOBS.labels(after.value).inc()
        if after in IN_BATCH:
            self._in_batch.setdefault(job.batch, {})[job.id] = job
        elif before in IN_BATCH:
            self._in_batch[job.batch].pop(job.id, None)

    async def move(self, job: Job, state: State, reason: str = "", *, cause: str = "") -> None:
        """Change the state; returns when the change is durable."""
        self._change(job, state, reason, cause)
        await self.save(job)

    def note(self, job: Job, state: State, reason: str, tasks: Background, *, cause: str = "") -> None:
        """Change the state now, write it soon: for what the batch system would tell us again anyway."""
        self._change(job, state, reason, cause)
        self.save_soon(job, tasks)

    def _change(self, job: Job, state: State, reason: str, cause: str) -> None:
        before = job.state
        job.changed_at = time.time()
        job.state, job.reason, job.cause = state, reason[:500], cause
        if state is not before:
            job.history.append(Step(job.changed_at, state, job.reason))
            del job.history[:-MAX_HISTORY]
            self._count(job, before, state)
            if state.final:
                job.ended_at = job.ended_at or job.changed_at
                ENDED.labels(state.value, cause).inc()
        self._tell(job, before)

    async def save(self, job: Job) -> None:
        """Write the job as it is now. Raises Unavailable: ``write_again`` does it when the journal can."""
        if job.id not in self._jobs:
            return
        try:
            await self.store.write(journal.update(job))
        except EdgeError as error:
            self._unwritten.add(job.id)
            log.warning("journal write failed", extra={"job": job.id, "reason": str(error)})
            raise Unavailable("the journal cannot be written now", detail=str(error)) from error
        self._unwritten.discard(job.id)

    def is_written(self, job: Job) -> bool:
        """Whether no write of this job has failed since the last that did not."""
        return job.id not in self._unwritten

    def disown(self, jobs: Iterable[JobId]) -> None:
        """Their insertion failed, perhaps after it was committed: they must not be there after a restart."""
        self._disowned.update(jobs)

    async def write_again(self) -> list[Job]:
        """What could not be written: a job as it is now, or its absence. Raises Unavailable at the first.

        Returns the jobs written.
        """
        if self._disowned:
            gone = frozenset(self._disowned)
            await self.store.write(journal.delete(*gone))
            self._disowned -= gone
        self._unwritten.intersection_update(self._jobs)
        waiting = [self._jobs[name] for name in self._unwritten]
        for some in (waiting[:1], waiting[1:]):  # one to try, the others in few commits
            await asyncio.gather(*map(self.save, some))
        return waiting

    def save_soon(self, job: Job, tasks: Background) -> None:
        """Write it in the background; several changes in a row become one write."""
        if job.id not in self._writing:
            self._writing[job.id] = tasks.create_task(self._save_in_background(job))

    async def _save_in_background(self, job: Job) -> None:
        try:
            await asyncio.sleep(0)
            with suppress(Unavailable):
                await self.save(job)
        finally:
            self._writing.pop(job.id, None)

    async def settled(self, job: JobId) -> None:
        """Wait for a write under way."""
        if (task := self._writing.get(job)) is not None:
            await asyncio.wait([task])

    def _tell(self, job: Job, before: State | None) -> None:
        for listener in self._listeners:
            listener(job, before)
        for queue in self._watches.get(job.account, ()):
            if not queue.full():
                queue.put_nowait(job)

    @contextmanager
    def watch(self, account: AccountName, limit: int = 4096) -> Iterator[asyncio.Queue[Job]]:
        """Changes of an account's jobs while the context lasts; a reader too slow misses some."""
        queue: asyncio.Queue[Job] = asyncio.Queue(limit)
        watches = self._watches.setdefault(account, set())
        watches.add(queue)
        try:
            yield queue
        finally:
            watches.discard(queue)
            if not watches:
                self._watches.pop(account, None)

    async def changes(self, account: AccountName) -> AsyncIterator[Job]:
        """The same as an endless iterator."""
        with self.watch(account) as queue:
            while True:
                yield await queue.get()
