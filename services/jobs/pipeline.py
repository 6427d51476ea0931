"""From ACCEPTED to the batch system: waits for inputs and dependencies, prepares, submits.

A job is never submitted twice. Before the first byte goes to the batch system the attempt is on
disk. After an answer that proves nothing (and after a restart in mid-attempt) the job is looked up
by its unique name until it is found, or until nobody has known it for ``settle_s`` after the
client's deadline; only then is it tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from edged import metrics
from edged.config.jobs import Jobs
from edged.errors import Busy, Denied, EdgeError, Unavailable, UnknownOutcome
from edged.identity.words import AccountName, JobId
from edged.lifecycle import Background
from edged.logs import get_logger
from services.jobs.batch.protocol import BatchJob, BatchSystem, Refused, Submission
from services.jobs.fullness import Fullness
from services.jobs.holding import Holding
from services.jobs.model import Job, State
from services.jobs.registry import Registry

log = get_logger("edged.jobs.pipeline")

MAX_ATTEMPTS = 5
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
LOOK_S = 2.0
LOOK_BACK_S = 3600.0  # clocks of gateway and batch system may differ

SUBMISSIONS = metrics.counter("job_submissions", "Submissions to the batch system, by outcome.", ("outcome",))
SUBMIT_SECONDS = metrics.histogram(
    "job_submit_seconds", "Time of one submission to the batch system, in seconds."
)


class Pipeline:
    """Brings waiting jobs forward, ``submit_parallel`` at once per account."""

    def __init__(
        self,
        registry: Registry,
        config: Jobs,
        *,
        batch_of: Callable[[Job], BatchSystem],
        prepare: Callable[[Job], Awaitable[Submission]],
    ) -> None:
        self._registry = registry
        self._config = config
        self._batch_of = batch_of
        self._prepare = prepare
        self._waiting: dict[AccountName, deque[JobId]] = {}
        self._runners: dict[AccountName, int] = {}
        self._delays: dict[JobId, int] = {}
        self._busy: set[JobId] = set()  # in a step now: two steps at once could submit twice
        self._pushed_again: set[JobId] = set()
        self._holding = Holding()
        self._fullness = Fullness()
        self._absent_since: dict[JobId, float] = {}
        self._tasks: Background | None = None

    def start(self, tasks: Background) -> None:
        """Begin, with everything the journal says is unfinished."""
        self._tasks = tasks
        for job in self._registry:
            if job.state in (State.ACCEPTED, State.PREPARING, State.SUBMITTING):
                self.push(job)

    def push(self, job: Job) -> None:
        """This job may have something to do now."""
        if self._tasks is None:
            return
        self._waiting.setdefault(job.account, deque()).append(job.id)
        running = self._runners.get(job.account, 0)
        if running < self._config.submit_parallel:
            self._runners[job.account] = running + 1
            self._tasks.create_task(self._run(job.account))

    async def _run(self, account: AccountName) -> None:
        queue = self._waiting[account]
        try:
            while queue:
                job = self._registry.get(queue.popleft())
                if job is None:
                    continue
                if job.id in self._busy:
                    self._pushed_again.add(job.id)
                    continue
                await self._guarded_step(job)
        finally:
            self._runners[account] -= 1

    async def _guarded_step(self, job: Job) -> None:
        self._busy.add(job.id)
        try:
            await self._step(job)
        finally:
            self._busy.discard(job.id)
            if job.id in self._pushed_again:
                self._pushed_again.discard(job.id)
                self.push(job)

    def ended(self, ended: Job) -> None:
        """A job reached its end: those held back for it may go on."""
        self._delays.pop(ended.id, None)
        for held in self._holding.released_by(ended):
            self._release(held)
        self._release(self._fullness.room(ended))

    def _release(self, held: JobId | None) -> None:
        if held is not None and (job := self._registry.get(held)) is not None:
            self.push(job)

    async def _step(self, job: Job) -> None:
        """Bring one job as far as it goes; failures that pass are tried again later."""
        try:
            if job.state is State.SUBMITTING:
                await self._recover(job)
            elif job.state in (State.ACCEPTED, State.PREPARING):
                await self._forward(job)
            self._delays.pop(job.id, None)
        except Refused as error:
            SUBMISSIONS.labels("refused").inc()
            await self._fail(job, f"the batch system refused: {error.message}", "refused")
        except Denied as error:
            await self._denied(job, error)
        except (Busy, Unavailable, UnknownOutcome) as error:
            self._again(job, error)
        except EdgeError as error:
            await self._fail(job, error.message, error.code)
        except Exception:  # a fault of ours with one job must not stop all others
            log.exception("job step failed", extra={"job": job.id, "state": job.state.value})
            self._again(job, Unavailable("an internal error of the gateway; it is tried again"))

    async def _denied(self, job: Job, error: Denied) -> None:
        """A ban takes the grant away at once; that it also cancels the job may be told a moment later."""
        if job.cancel:
            await self._kill(job)
        elif job.id not in self._delays:
            self._again(job, error)
        else:
            await self._fail(job, error.message, "denied")

    async def _kill(self, job: Job) -> None:
        await self._end(job, State.KILLED, f"cancelled by {job.cancel}", "cancelled")

    async def _fail(self, job: Job, reason: str, cause: str) -> None:
        await self._end(job, State.FAILED, reason, cause)

    async def _end(self, job: Job, state: State, reason: str, cause: str) -> None:
        """Its last state, which the registry writes later where the journal cannot take it now."""
        with contextlib.suppress(Unavailable):
            await self._registry.move(job, state, reason, cause=cause)

    def _again(self, job: Job, error: EdgeError) -> None:
        """Try later, not sooner than the error asks."""
        tries = self._delays.get(job.id, 0)
        self._delays[job.id] = tries + 1
        delay = RETRY_S[min(tries, len(RETRY_S) - 1)]
        if isinstance(error, Busy):
            delay = max(delay, error.retry_after_s)
        job.reason = error.message[:500]
        log.info("job waits", extra={"job": job.id, "reason": str(error), "retry_s": delay})
        self.later(job, delay)

    def later(self, job: Job, delay_s: float) -> None:
        """Push after a while."""
        asyncio.get_running_loop().call_later(delay_s, self.push, job)

    async def _forward(self, job: Job) -> None:
        """ACCEPTED → QUEUED, when nothing is waited for."""
        if job.cancel:
            await self._kill(job)
            return
        if await self._must_wait(job):
            return
        if job.state is State.ACCEPTED:
            self._registry.note(job, State.PREPARING, "", self._group)
        submission = await self._prepare(job)
        if job.cancel:
            await self._kill(job)
            return
        await self._begin_attempt(job)
        await self._submit(job, submission)

    async def _begin_attempt(self, job: Job) -> None:
        """On disk before the effect. Raises Unavailable: what is not on disk is no attempt."""
        job.attempt += 1
        job.attempt_at = time.time()
        try:
            await self._registry.move(job, State.SUBMITTING)
        except Unavailable as error:
            job.attempt -= 1
            self._registry.note(job, State.ACCEPTED, error.message, self._group)
            raise

    @property
    def _group(self) -> Background:
        if self._tasks is None:
            raise RuntimeError("pipeline not started")
        return self._tasks

    async def _must_wait(self, job: Job) -> bool:
        if job.missing:
            if time.time() > _began(job) + self._config.inputs_s:
                await self._fail(job, f"inputs never came: {', '.join(job.missing[:5])}", "inputs")
            return True
        for after in job.after:
            other = self._registry.get(JobId(after.job))
            if other is not None and not other.state.final:
                self._holding.hold_after(job, after.job)
                return True
            if after.ok and (other is None or other.state is not State.FINISHED):
                told = other.state.value if other else "gone"
                await self._fail(job, f"it was to run after {after.job}, which is {told}", "dependency")
                return True
        if self._array_is_full(job):
            self._holding.hold_in_array(job)
            return True
        if self._fullness.holds(job, time.time()):
            job.reason = "waits its turn: the batch system takes no more jobs of this account in this queue"
            return True
        return False

    def _array_is_full(self, job: Job) -> bool:
        """Whether as many elements of its array are under way as may be."""
        if not job.at_once:
            return False
        under_way = sum(
            not other.state.final and other.state is not State.ACCEPTED
            for other in self._registry.array(job.array)
        )
        return under_way >= job.at_once

    async def _submit(self, job: Job, submission: Submission) -> None:
        started = time.perf_counter()
        try:
            submitted = await self._batch_of(job).submit(self._registry.grant(job.id), submission)
        except (Busy, Denied, Unavailable) as error:  # the driver's word: no job was made
            SUBMISSIONS.labels(error.code).inc()
            if isinstance(error, Busy):
                self._full(job, error)
            await self._registry.move(job, State.ACCEPTED, error.message)
            raise
        except UnknownOutcome:
            SUBMISSIONS.labels("unknown").inc()
            raise
        SUBMISSIONS.labels("ok").inc()
        SUBMIT_SECONDS.observe(time.perf_counter() - started)
        job.ref = submitted.ref
        await self._queued(job)

    def _full(self, job: Job, error: Busy) -> None:
        """The job asks again later, others wait behind it. Raises Refused when it has asked long enough."""
        now = time.time()
        if now > _began(job) + self._config.busy_s:
            raise Refused(f"full for {self._config.busy_s:.0f} s: {error.message}") from error
        self._fullness.said(job, now + error.retry_after_s)

    async def _queued(self, job: Job) -> None:
        job.queued_at = job.queued_at or time.time()
        await self._registry.move(job, State.QUEUED)
        self._release(self._fullness.room(job))

    async def _look(self, job: Job) -> Sequence[BatchJob]:
        """Ask for it by name. While nobody can answer, its absence proves nothing and starts anew.

        Raises Unavailable whatever the reason: there may be a job, so not even Denied is its end.
        """
        try:
            return await self._batch_of(job).find(
                self._registry.grant(job.id), job.id, job.attempt_at - LOOK_BACK_S
            )
        except EdgeError as error:
            self._absent_since.pop(job.id, None)
            raise Unavailable(error.message, detail=error.detail) from error

    async def _recover(self, job: Job) -> None:
        """An attempt whose outcome nobody knows: look until it is found or surely absent."""
        found = [one for one in await self._look(job) if not any(one.ref.same(past) for past in job.past)]
        if found:
            self._absent_since.pop(job.id, None)  # a run after this one must be missed for as long itself
            job.ref = _the_one(found).ref
            SUBMISSIONS.labels("found").inc()
            await self._queued(job)
            return
        now = time.monotonic()  # a clock that is set must not end the waiting
        wait_s = max(
            job.attempt_at + self._config.client_deadline_s - time.time(),
            self._absent_since.setdefault(job.id, now) + self._config.settle_s - now,
        )
        if wait_s > 0:
            job.reason = "looking for it in the batch system"
            self.later(job, min(LOOK_S, wait_s + 0.05))
            return
        self._absent_since.pop(job.id, None)
        SUBMISSIONS.labels("absent").inc()
        if job.cancel:
            await self._kill(job)
        elif job.attempt >= MAX_ATTEMPTS:
            await self._fail(job, f"no submission took effect in {job.attempt} attempts", "submission")
        else:
            await self._registry.move(job, State.ACCEPTED, "the submission had no effect")
            self.push(job)


def _began(job: Job) -> float:
    """When this run of the job was asked for: at its submission, or at its restart."""
    return job.restarted_at or job.created_at


def _the_one(found: Sequence[BatchJob]) -> BatchJob:
    """Of several jobs with one name only the first to run has the marker; the others exit at once."""
    return min(found, key=lambda job: (job.state.final, job.ref.submitted_at))
