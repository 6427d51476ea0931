"""The job engine: what doors call. Accept, look, wait, cancel, clean; policy and states are in here.

A job is in the journal before it is acknowledged. Doors translate protocols and nothing else: the
same job through any of them has the same fate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec
from sqlalchemy.exc import IntegrityError

from edged.config import Config
from edged.errors import BadRequest, Busy, Conflict, Denied, EdgeError, NotFound, Unavailable
from edged.identity.client import Verdicts
from edged.identity.words import AccountName, JobId, Principal, Verdict
from edged.lifecycle import Background
from edged.logs import audit, get_logger
from edged.state import Store
from edged.summary import Summary
from services.jobs import journal, policy
from services.jobs.batch import script
from services.jobs.batch.protocol import BatchSystem, SiteState, Submission
from services.jobs.credentials import Credential, Credentials
from services.jobs.drafting import Draft, Drafting
from services.jobs.follower import Follower, Look
from services.jobs.model import Description, Job, State, begin_again
from services.jobs.pipeline import Pipeline
from services.jobs.registry import Registry
from services.jobs.reporting import Reporting
from services.jobs.sessions import RoutedSessions, Sessions
from services.jobs.sites import Sites
from services.jobs.summary import Telling
from services.jobs.upkeep import Upkeep

log = get_logger("edged.jobs")

DRAINED = "drained"  # setting: comma-separated queue names, or *

Files = Mapping[str, tuple[bytes, int]]
T = TypeVar("T")


class Engine:
    """The one job engine of a site."""

    name = "jobs"

    def __init__(
        self,
        config: Config,
        store: Store,
        identity: Verdicts,
        *,
        sessions: Sessions,
        sessions_of: Mapping[str, Sessions] | None = None,
        batches: Mapping[str, BatchSystem],
        files_of: Callable[[Job, bytes, Description, Submission], Awaitable[Files]],
    ) -> None:
        if config.jobs is None:
            raise RuntimeError("no [jobs] section")
        self.config = config.jobs
        self.registry = Registry(store, self.config.limits_by, self.config.max_jobs)
        self.credentials = Credentials(store)
        self.sessions = RoutedSessions(self._batch_of, sessions, sessions_of) if sessions_of else sessions
        self.batches = batches
        self.drained: frozenset[str] = frozenset()
        self._drafting = Drafting(self.config, config.mappings, self.registry, self.credentials)
        self._site = config
        self._store = store
        self._identity = identity
        self._files_of = files_of
        self._pipeline = Pipeline(
            self.registry, self.config, batch_of=lambda job: self.batches[job.batch], prepare=self._prepare
        )
        self._followers = {
            name: Follower(
                self.registry,
                batch,
                self.config,
                looks=partial(self._looks, name),
                standing=identity.standing_grant,
                outcome=self._outcome,
                on_change=self._changed,
                on_accounted=self._accounted,
            )
            for name, batch in batches.items()
        }
        self._reporting = Reporting(identity, store, self.registry, self.sessions, batches)
        self._upkeep = Upkeep(
            self.registry,
            self.credentials,
            self._reporting,
            inputs_s=self.config.inputs_s,
            push=self._pipeline.push,
            clean=self._clean,
        )
        self._sites = Sites(batches, identity.standing_grant)
        self._telling = Telling(config, self.registry, self.sites)
        self._coming: dict[JobId, Job] = {}  # on their way into the journal
        self._leaving: set[JobId] = set()  # being removed
        self._tasks: Background | None = None

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """What writes runs to its end: a client that leaves in the middle must not leave half a change."""
        if self._tasks is None:
            work.close()
            raise Unavailable("the job engine is not running")
        return await self._tasks.whole(work)

    def _batch_of(self, job: JobId) -> str:
        known = self.registry.get(job)
        return known.batch if known is not None else ""

    # -- life ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._store.running(tasks))
            self.registry.restore(await self._store.read(journal.load))
            kept = await self._store.read(journal.credentials)
            self.credentials.restore(msgspec.msgpack.decode(record, type=Credential) for record in kept)
            drained = await self._store.read(lambda c: journal.setting(c, DRAINED))
            self.drained = frozenset(filter(None, (drained or "").split(",")))
            work = await stack.enter_async_context(Background())
            self._tasks = work
            self.registry.listen(self._listener)
            self._identity.on_ban(self.banned)
            self._pipeline.start(work)
            for follower in self._followers.values():
                work.create_task(follower.run(work))
            self._upkeep.start(work)
            yield

    def not_ready(self) -> str | None:
        """The journal's, identity's or a batch system's trouble."""
        if (trouble := self._store.not_ready()) is not None:
            return trouble
        if (trouble := self._identity.not_ready()) is not None:
            return trouble
        troubles = [f"{name}: {f.trouble}" for name, f in self._followers.items() if f.trouble]
        return "; ".join(troubles) or None

    # -- accepting ----------------------------------------------------------------------------------

    async def accept(self, verdict: Verdict, descriptions: Sequence[Description]) -> list[Job | EdgeError]:
        """Take jobs on: each answer is the job, now durable, or the error that kept it out.

        An array gives its elements one after another. Raises Busy and Unavailable for the call as a
        whole; nothing is accepted then.
        """
        if self.drained & {"*"}:
            raise Unavailable("the site is draining: no new jobs for now")
        outcomes: list[Job | EdgeError] = []
        fresh: list[Draft] = []
        for description in descriptions:
            try:
                for job, own in self._drafting.draft(verdict, description, self.drained):
                    known = self._known(job, fresh)
                    if known is None:
                        fresh.append((job, own))
                    outcomes.append(known or job)
            except EdgeError as error:
                outcomes.append(error)
        if fresh:
            await self._whole(self._take(verdict, fresh))
        return outcomes

    def _known(self, job: Job, fresh: Sequence[Draft]) -> Job | None:
        """The job this one repeats. Raises Conflict when the key was used for something else."""
        key = journal.owner_key(job)
        if key is None:
            return None
        before = self.registry.by_key(key) or next((j for j, _ in fresh if journal.owner_key(j) == key), None)
        if before is not None and before.digest != job.digest:
            raise Conflict("this key was used for another description", job=before.id)
        return before

    async def _take(self, verdict: Verdict, fresh: Sequence[Draft]) -> None:
        caller = policy.Caller(verdict.vo, verdict.account, verdict.job_class)
        jobs = [job for job, _ in fresh]
        with self.registry.load.admitted(caller, len(jobs), len(self.registry), time.time()):
            self._coming.update((job.id, job) for job in jobs)
            try:
                rows = [(job, own, await self._identity.job_grant(verdict, job.id)) for job, own in fresh]
                await self._store.write(journal.insert(rows))
            except IntegrityError:  # the same key came in twice at once: the other one is being accepted
                raise Busy("the same job is being accepted at this moment", retry_after_s=1) from None
            except EdgeError:  # a connection lost in the commit: nobody knows, and nobody was promised it
                self.registry.disown(job.id for job in jobs)
                raise
            finally:
                for job in jobs:
                    del self._coming[job.id]
            self._accepted(rows)
        for job in jobs:
            if job.cancel:  # a ban overtook it; its journal does not know yet
                await self.registry.save(job)

    def _accepted(self, rows: Sequence[tuple[Job, Description, bytes]]) -> None:
        """These are in the journal: from now on they are jobs."""
        for job, _, grant in rows:
            audit(
                "job accepted",
                who=job.owner.for_log(),
                account=job.account,
                allowed=True,
                reason="",
                job=job.id,
                queue=job.queue,
            )
            self.registry.add(job, grant)
            self._pipeline.push(job)

    async def _prepare(self, job: Job) -> Submission:
        """Session directory and control files; harmless to repeat after a crash."""
        description = await self._store.read(lambda c: journal.description(c, job.id))
        if description is None:
            raise NotFound("the job's description is gone")
        queue = next((q for q in self.config.queues if q.name == job.queue), None)
        if queue is None:
            raise Denied(f"queue {job.queue} is no longer configured")
        rule = policy.rule_of(self._site.mappings, job.account, job.job_class)
        submission = policy.submission(job, queue, rule)
        files = {
            **await self._files_of(job, self.registry.grant(job.id), description, submission),
            **(self.credentials.files(job.delegation) if job.credential_in_job else {}),
        }
        await self.sessions.create(self.registry.grant(job.id), job.id, files)
        return submission

    async def _outcome(self, job: JobId) -> script.Outcome | None:
        """How the job's payload says that it ended; None while it has not."""
        try:
            opened = await self.sessions.open_own(self.registry.grant(job), job, script.OUTCOME.name)
        except EdgeError:
            return None
        try:
            return script.read_outcome(await opened.read(script.MAX_OUTCOME, 0))
        finally:
            opened.close()

    # -- changes ------------------------------------------------------------------------------------

    def _listener(self, job: Job, before: State | None) -> None:
        if job.state.final and before is not None and not before.final:
            self._ended(job)

    def _ended(self, job: Job) -> None:
        log.info(
            "job ended",
            extra={"job": job.id, "state": job.state.value, "cause": job.cause, "exit_code": job.exit_code},
        )
        self._pipeline.ended(job)
        if self._tasks is not None:
            self._tasks.create_task(_guarded(self._reporting.used(job)))
            self._tasks.create_task(_guarded(self._reporting.ended(job)))

    def _changed(self, job: Job) -> None:
        """The batch system told something new; nodes matter to whoever checks the job's token."""
        if job.state is State.RUNNING and job.nodes and self._tasks is not None:
            self._tasks.create_task(_guarded(self._reporting.runs(job)))

    def _accounted(self, job: Job) -> None:
        """Accounting told what it did not know when the job ended."""
        if self._tasks is not None:
            self._tasks.create_task(_guarded(self._reporting.used(job)))

    # -- what callers ask ---------------------------------------------------------------------------

    async def cancel(self, job: Job, who: str = "owner") -> None:
        """Ask for a job's end; durable when it returns. An ended job stays as it is.

        Raises Unavailable when it could not be made durable; it is cancelled even so, but for a crash now.
        """
        asked = bool(job.cancel) and self.registry.is_written(job)
        if not job.state.final and not asked:
            await self._whole(self._cancel(job, who))

    async def _cancel(self, job: Job, who: str) -> None:
        job.cancel = job.cancel or who
        try:
            await self.registry.save(job)
        finally:
            if job.state in (State.ACCEPTED, State.PREPARING):
                self._pipeline.push(job)
            else:
                self._followers[job.batch].wake()

    async def clean(self, job: Job) -> None:
        """Remove an ended job and its files. Conflict while it is not ended."""
        await self._whole(self._clean(job))

    async def clean_at_end(self, job: Job) -> None:
        """Remove a job soon after it has ended by itself."""
        job.keep_s = 1.0
        await self.registry.save(job)

    async def _clean(self, job: Job) -> None:
        if not job.state.final:
            raise Conflict(f"the job is {job.state.value}; cancel it first")
        if job.id in self._leaving:
            raise Conflict("the job is being removed")
        self._leaving.add(job.id)
        try:
            await self.sessions.remove(self.registry.grant(job.id), job.id)
            await self.registry.forget(job)
        finally:
            self._leaving.discard(job.id)

    async def restart(self, verdict: Verdict, job: Job) -> None:
        """Begin a failed job again, in the same session directory. Raises Conflict, Busy, Unavailable."""
        if job.state is not State.FAILED:
            raise Conflict("Job has not failed")
        if job.reruns < 1:
            raise Conflict("No more restarts allowed")
        if self.drained & {"*", job.queue}:
            raise Unavailable("the queue is draining: no new jobs for now")
        await self._whole(self._restart(verdict, job))

    async def _restart(self, verdict: Verdict, job: Job) -> None:
        caller = policy.Caller(job.vo, job.account, job.job_class)
        with self.registry.load.admitted(caller, 1, len(self.registry) - 1, time.time()):
            await self._begin_again(verdict, job)

    async def _begin_again(self, verdict: Verdict, job: Job) -> None:
        await self.registry.settled(job.id)
        grant = await self._identity.job_grant(verdict, job.id)
        await self._store.write(journal.regrant(job.id, grant))
        await self.sessions.reopen(grant, job.id)
        there = self.registry.get(job.id) is job and job.id not in self._leaving
        if job.state is not State.FAILED or not there:
            raise Conflict("Job has not failed")  # somebody else was quicker
        self.registry.regrant(job.id, grant)
        begin_again(job)
        await self.registry.move(job, State.ACCEPTED, f"restarted by {verdict.principal.subject}")
        self._pipeline.push(job)

    async def renewed(self, delegation: str) -> None:
        """A delegation has a new credential: hand it to the jobs that use it and are under way."""
        files = self.credentials.files(delegation)
        for job in self.registry:
            if job.delegation != delegation or not job.credential_in_job:
                continue
            if not job.state.final and job.state is not State.ACCEPTED:
                await self.sessions.create(self.registry.grant(job.id), job.id, files)

    async def put_input(self, job: Job, name: str, content: AsyncIterator[bytes], *, mode: int = 0) -> None:
        """Receive an input the job waits for. ``mode``: its permission bits, 0 for what the umask leaves."""
        if job.state is not State.ACCEPTED:
            raise Conflict(f"inputs are taken while the job is ACCEPTED, it is {job.state.value}")
        await self.sessions.put(
            self.registry.grant(job.id), job.id, name, content, self.config.max_input, mode=mode
        )
        if name in job.missing:
            await self._whole(self._received(job, name))

    async def _received(self, job: Job, name: str) -> None:
        job.missing = tuple(other for other in job.missing if other != name)
        try:
            await self.registry.save(job)
        except Unavailable:  # they will send it again
            if job.state is State.ACCEPTED:
                job.missing = (*job.missing, name)
            raise
        self._pipeline.push(job)

    async def wait(self, job: Job, seen: float, timeout_s: float) -> Job:
        """Return when the job has changed after ``seen`` (its ``changed_at``), or at the timeout."""
        with self.registry.watch(job.account) as changes:
            try:
                async with asyncio.timeout(timeout_s):
                    while job.changed_at <= seen and not job.state.final:
                        await changes.get()
            except TimeoutError:
                pass
        return job

    def banned(self, covers: Callable[[Principal], bool], keep_jobs: bool) -> None:
        """A ban came: its jobs end, unless it says to keep them."""
        if keep_jobs or self._tasks is None:
            return
        for job in self._coming.values():
            if covers(job.owner):
                job.cancel = "ban"
        for job in self.registry:
            if not job.state.final and covers(job.owner):
                self._tasks.create_task(self._cancel_banned(job))

    async def _cancel_banned(self, job: Job) -> None:
        try:
            await self.cancel(job, "ban")
        except EdgeError as error:
            log.error("banned job not cancelled", extra={"job": job.id, "reason": str(error)})  # noqa: TRY400

    async def drain(self, queues: Sequence[str]) -> None:
        """Refuse new jobs in these queues (``*``: all); running ones finish. Empty: open all again."""
        unknown = set(queues) - {"*"} - {queue.name for queue in self.config.queues}
        if unknown:
            raise BadRequest(f"no queue named {min(unknown)!r}")
        await self._store.write(journal.put_setting(DRAINED, ",".join(sorted(queues))))
        self.drained = frozenset(queues)

    async def sites(self, account: AccountName) -> dict[str, SiteState]:
        """What each batch system says of itself, as the account sees it; some seconds old."""
        return await self._sites.of(account)

    async def summary(self) -> Summary:
        """Who is using the site's queues, for the portal."""
        return await self._telling.summary(self.drained)

    async def _looks(self, batch: str) -> list[Look]:
        """One sweep where one account sees the jobs of all, else one per account with jobs there."""
        accounts = sorted({job.account for job in self.registry.in_batch(batch).values()})
        if not accounts:
            return []
        viewer = AccountName(self._site.accounts.poll_account or accounts[0])
        grant = await self._identity.standing_grant(viewer)
        if await self.batches[batch].sees_all(grant):
            return [Look("all", grant, tuple(accounts))]
        return [Look(own, await self._identity.standing_grant(own), (own,)) for own in accounts]


async def _guarded(report: Coroutine[Any, Any, None]) -> None:
    """A fault of ours with what one job wrote must not stop all others."""
    try:
        await report
    except Exception:
        log.exception("report failed")
