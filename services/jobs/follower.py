"""What becomes of jobs in the batch system: one sweep per poll, accounting for what ended or vanished.

The state of 10,000 queued jobs costs one client call and the difference to the sweep before. A job
that was acknowledged but that neither queue nor accounting knows for ``settle_s`` is LOST, and is
said to be; a final state is shown once its exit code is known or ``PATIENCE_S`` have passed. These
spans are counted by the monotonic clock: a clock that is set must neither lose a job nor hold up its end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from edged import metrics
from edged.config.jobs import Jobs
from edged.errors import EdgeError
from edged.identity.words import AccountName, JobId
from edged.lifecycle import Background
from edged.logs import get_logger
from services.jobs import duplicates
from services.jobs.batch.protocol import NAME_PREFIX, BatchJob, BatchState, BatchSystem, Cause, Sweep
from services.jobs.batch.script import Outcome
from services.jobs.late import Late
from services.jobs.model import IN_BATCH, Job, State
from services.jobs.registry import Registry

log = get_logger("edged.jobs.follower")

PATIENCE_S = 10.0  # accounting may lag behind the queue by some seconds
SILENCE_S = 30.0  # accounting that did not answer is not asked for so long: it must not hold up the sweeps
NODE_FAILURE_S = 60.0  # a lost node's job may be put back by the site
NODE_LOST = "the site lost its node; it may come back"
CANCEL_AGAIN_S = 15.0
SPARE = 40.0  # a pause is so many times what the sweep took, for a big queue costs the controller too ...
SPARE_AT_MOST = 1.5  # ... but at most so many poll_s: 4.5 s by default
LOST_AFTER = 4  # times settle_s: for a job once seen, a restarting controller may need a while

POLL_SECONDS = metrics.histogram(
    "job_poll_seconds", "Time of one sweep of the batch system, in seconds.", ("batch",)
)
POLL_AGE = metrics.gauge(
    "job_poll_timestamp_seconds", "When the last sweep succeeded (Unix time).", ("batch",)
)
POLL_FAILED = metrics.counter("job_polls_failed", "Sweeps that failed.", ("batch",))

STATE_OF = {
    BatchState.QUEUED: State.QUEUED,
    BatchState.HELD: State.HELD,
    BatchState.RUNNING: State.RUNNING,
    BatchState.SUSPENDED: State.SUSPENDED,
    BatchState.FINISHING: State.FINISHING,
    BatchState.FINISHED: State.FINISHED,
    BatchState.FAILED: State.FAILED,
    BatchState.KILLED: State.KILLED,
}


@dataclass(frozen=True, slots=True)
class Look:
    """One sweep to make: as whom, and whose jobs it shows. Sweeps of the same ``key`` are compared."""

    key: str
    grant: bytes
    accounts: tuple[str, ...]


def pause_s(poll_s: float, took_s: float) -> float:
    """Longer after a sweep that took long: a big queue or a controller under stress is asked less often."""
    return min(max(poll_s, took_s * SPARE), poll_s * SPARE_AT_MOST)


class Follower:
    """Follows the jobs of one batch system. ``looks`` tells the sweeps to make, by the accounts in use."""

    def __init__(
        self,
        registry: Registry,
        batch: BatchSystem,
        config: Jobs,
        *,
        looks: Callable[[], Awaitable[Sequence[Look]]],
        standing: Callable[[AccountName], Awaitable[bytes]],
        outcome: Callable[[JobId], Awaitable[Outcome | None]],
        on_change: Callable[[Job], None],
        on_accounted: Callable[[Job], None],
    ) -> None:
        self.batch = batch
        self.trouble: str | None = None
        self._registry = registry
        self._config = config
        self._looks = looks
        self._standing = standing
        self._outcome = outcome
        self._on_change = on_change
        self._on_accounted = on_accounted
        self._before: dict[str, Sweep] = {}
        self._present: dict[str, set[JobId]] = {}
        self._early: dict[JobId, BatchJob] = {}  # told before its submission had returned
        self._missing_since: dict[JobId, float] = {}
        self._ending_since: dict[JobId, float] = {}
        self._cancelled_at: dict[JobId, float] = {}
        self._late = Late((), 0.0)
        self._silent: EdgeError | None = None  # accounting did not answer, and is left alone
        self._silent_until = 0.0
        self._tasks: Background | None = None
        self._wake = asyncio.Event()

    async def run(self, tasks: Background) -> None:
        """Poll for ever."""
        self._tasks = tasks
        self._late = Late((job for job in self._registry if job.batch == self.batch.name), time.time())
        while True:
            took_s = 0.0
            if self._mine() or self._late.due(time.time()):
                started = time.perf_counter()
                await self._poll_once()
                took_s = time.perf_counter() - started
            try:
                async with asyncio.timeout(pause_s(self._config.poll_s, took_s)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    def wake(self) -> None:
        """Poll now: something was cancelled, or somebody waits."""
        self._wake.set()

    def _mine(self) -> dict[JobId, Job]:
        return self._registry.in_batch(self.batch.name)

    async def _poll_once(self) -> None:
        started = time.perf_counter()
        try:
            await self._sweep()
            self.trouble = None
            POLL_AGE.labels(self.batch.name).set(time.time())
        except EdgeError as error:
            self.trouble = error.message
            POLL_FAILED.labels(self.batch.name).inc()
            log.warning("sweep failed", extra={"batch": self.batch.name, "reason": str(error)})
        except Exception:  # a fault of ours with one answer must not stop the engine
            self.trouble = "an internal error while reading the batch system's answer"
            POLL_FAILED.labels(self.batch.name).inc()
            log.exception("sweep failed", extra={"batch": self.batch.name})
        finally:
            POLL_SECONDS.labels(self.batch.name).observe(time.perf_counter() - started)

    async def _sweep(self) -> None:
        """One look at everything, then accounting for those that ended or are not there."""
        before = self._mine()
        for look in await self._looks():
            sweep = await self.batch.sweep(look.grant, look.accounts)
            key = look.key
            present = self._present.setdefault(key, set())
            changes = sweep.since(self._before.get(key))
            present.difference_update(map(_job_id, changes.gone))
            for found in changes.changed:
                name = _job_id(found.ref.name)
                known = self._registry.get(name)
                present.add(known.id if known is not None else name)  # one text for each job, not two
                self._saw(found)
            self._before[key] = sweep
            self._catch_up()
            ended = self._to_ask(before, present, look.accounts)
            if ended:
                await self._ask_accounting(look.grant, ended)
        await self._cancel_due()
        await self._ask_late()
        if self._silent is not None and time.monotonic() < self._silent_until:
            raise self._silent

    def _catch_up(self) -> None:
        """Records that came before we knew the job was there: an unchanged one is not told again."""
        for known in list(self._early):
            job = self._registry.get(known)
            if job is None or job.state.final:
                del self._early[known]
            elif job.state in IN_BATCH:
                self._saw(self._early[known])

    def _saw(self, found: BatchJob) -> None:
        """A changed record of the sweep."""
        job = self._registry.get(_job_id(found.ref.name))
        if job is None or job.state.final:
            return
        if job.state not in IN_BATCH or job.ref is None:
            self._early[job.id] = found
            return
        self._early.pop(job.id, None)  # this is newer
        if not job.ref.same(found.ref):
            return
        self._missing_since.pop(job.id, None)
        self._apply(job, found)

    def _apply(self, job: Job, found: BatchJob) -> None:
        """Take over a state that is not final; a final one waits for accounting."""
        job.raw_state = found.raw_state
        if found.nodes:
            job.nodes = found.nodes
        if found.started_at:
            job.started_at = found.started_at
        if found.state.final:
            self._ending_since.setdefault(job.id, time.monotonic())
            self._move(job, State.FINISHING, "")
            return
        self._ending_since.pop(job.id, None)
        job.stuck_since = (job.stuck_since or time.time()) if found.stuck else 0.0
        state = STATE_OF[found.state]
        if state is State.RUNNING and job.started_at is None:
            job.started_at = time.time()
        self._move(job, state, found.reason)

    def _move(self, job: Job, state: State, reason: str, cause: str = "") -> None:
        if self._tasks is not None and (job.state is not state or job.reason != reason):
            self._registry.note(job, state, reason, self._tasks, cause=cause)
            self._on_change(job)

    def _to_ask(self, before: Mapping[JobId, Job], seen: set[JobId], accounts: Sequence[str]) -> list[Job]:
        """Jobs that ended, and jobs that were with the batch system ``before`` we asked but are not there."""
        asking: list[Job] = []
        for job in self._mine().values():
            if accounts and job.account not in accounts:
                continue
            if job.id in self._ending_since:
                asking.append(job)
            elif job.id not in seen and job.id in before:
                self._missing_since.setdefault(job.id, time.monotonic())
                asking.append(job)
            elif job.id in seen:
                self._missing_since.pop(job.id, None)
        return asking

    async def _ask_accounting(self, grant: bytes, jobs: Sequence[Job]) -> None:
        answers = await self._finals(grant, jobs)
        if answers is None:
            for job in jobs:
                self._patience_ended(job)
            return
        for job in jobs:
            if job.state in IN_BATCH and job.ref is not None:
                self._conclude(job, answers.get(job.ref.name))

    async def _finals(self, grant: bytes, jobs: Sequence[Job]) -> dict[str, BatchJob] | None:
        """Accounting's answers by job name; None while it does not answer, which proves nothing."""
        if time.monotonic() < self._silent_until:
            return None
        try:
            answers = await self.batch.finals(grant, [job.ref for job in jobs if job.ref is not None])
        except EdgeError as error:
            self._silent, self._silent_until = error, time.monotonic() + SILENCE_S
            return None
        self._silent = None
        return {answer.ref.name: await self._of_the_first(answer) for answer in answers}

    async def _of_the_first(self, answer: BatchJob) -> BatchJob:
        """The answer, unless it tells of a second copy."""
        if not duplicates.suspected(answer):
            return answer
        return duplicates.corrected(answer, await self._outcome(_job_id(answer.ref.name)))

    def _patience_ended(self, job: Job) -> bool:
        """Whether it ended by the queue's word; if so long enough ago, that has to do."""
        ending = self._ending_since.get(job.id)
        if ending is not None and time.monotonic() - ending > PATIENCE_S:
            self._end_unaccounted(job)
        return ending is not None

    def _conclude(self, job: Job, answer: BatchJob | None) -> None:
        """Final facts, or the decision that there will be none."""
        now = time.monotonic()
        if answer is not None and job.ref is not None and not job.ref.same(answer.ref):
            answer = None
        if answer is not None and answer.state.final:
            if answer.may_still_run and now - self._ending_since.setdefault(job.id, now) < NODE_FAILURE_S:
                job.raw_state = answer.raw_state
                twice = answer.reason == duplicates.UNKNOWN
                self._move(job, State.FINISHING, answer.reason if twice else NODE_LOST)
                return
            self._end(job, answer)
            return
        if self._patience_ended(job):
            return
        missing_s = now - self._missing_since.get(job.id, now)
        patience_s = self._config.settle_s * (LOST_AFTER if answer is not None else 1)
        if missing_s > patience_s:
            self._forget(job)
            self._move(
                job, State.LOST, "the batch system acknowledged the job and no longer knows it", "site"
            )

    def _end(self, job: Job, answer: BatchJob) -> None:
        self._forget(job)
        _take_facts(job, answer)
        state, cause, reason = verdict(job, answer)
        self._move(job, state, reason, cause)

    def _end_unaccounted(self, job: Job) -> None:
        """It ended by the queue's word and accounting stays silent: say what is known."""
        self._forget(job)
        state = {"COMPLETED": State.FINISHED, "CANCELLED": State.KILLED}.get(job.raw_state, State.FAILED)
        job.ended_at = time.time()
        job.unaccounted = True
        self._late.add(job, job.ended_at)
        self._move(job, state, "accounting does not know this job: exit code and usage are unknown")

    async def _ask_late(self) -> None:
        """Fill in what accounting did not tell when the job ended; its state stays as it was shown."""
        due: dict[AccountName, list[Job]] = {}
        for name in self._late.due(time.time()):
            job = self._registry.get(name)
            if job is None or not job.unaccounted or job.ref is None:
                self._late.drop(name)
            else:
                due.setdefault(job.account, []).append(job)
        for account, jobs in due.items():
            answers = await self._finals(await self._standing(account), jobs) or {}
            for job in jobs:
                self._told_late(job, answers.get(job.ref.name if job.ref else ""))

    def _told_late(self, job: Job, answer: BatchJob | None) -> None:
        if answer is None or job.ref is None or not job.ref.same(answer.ref) or not answer.state.final:
            self._late.unanswered(job, time.time())
            return
        self._late.drop(job.id)
        _take_facts(job, answer)
        job.unaccounted = False
        self._move(job, job.state, verdict(job, answer)[2], job.cause)
        self._on_accounted(job)

    def _forget(self, job: Job) -> None:
        for memory in (self._missing_since, self._ending_since, self._cancelled_at):
            memory.pop(job.id, None)

    async def _cancel_due(self) -> None:
        """Cancel what was asked to end and what is stuck, again and again until the sweep agrees."""
        now = time.time()
        for job in self._mine().values():
            if job.stuck_since and not job.cancel and now - job.stuck_since > self._config.stuck_s:
                job.cancel = "stuck"
            if job.cancel and job.state is not State.FINISHING:
                await self._cancel(job, time.monotonic())

    async def _cancel(self, job: Job, now: float) -> None:
        if now - self._cancelled_at.get(job.id, -CANCEL_AGAIN_S) < CANCEL_AGAIN_S or job.ref is None:
            return
        self._cancelled_at[job.id] = now
        try:
            await self.batch.cancel(self._registry.grant(job.id), job.ref)
        except EdgeError as error:
            self._cancelled_at.pop(job.id, None)
            log.warning("cancel failed", extra={"job": job.id, "reason": str(error)})


def _take_facts(job: Job, answer: BatchJob) -> None:
    """What accounting knows of an ended job."""
    job.raw_state = answer.raw_state
    job.exit_code, job.signal = answer.exit_code, answer.signal
    job.started_at = answer.started_at or job.started_at
    job.ended_at = answer.ended_at or job.ended_at or time.time()
    job.elapsed_s, job.max_rss = answer.elapsed_s, answer.max_rss
    job.cpu_s, job.gpu_s = answer.cpu_s, answer.gpu_s
    job.nodes, job.tres = answer.nodes or job.nodes, dict(answer.tres)


def verdict(job: Job, answer: BatchJob) -> tuple[State, str, str]:
    """The final state with cause and words. Who cancelled is told from what we asked for ourselves."""
    if answer.state is BatchState.KILLED:
        if job.cancel == "stuck":
            return State.KILLED, "stuck", f"it could never start: {job.reason}"
        who = f"by {job.cancel}" if job.cancel else "by the site"
        return State.KILLED, Cause.CANCELLED.value, f"cancelled {who}"
    if answer.state is BatchState.FAILED:
        return State.FAILED, answer.cause.value, answer.reason or _WORDS.get(answer.cause, "")
    return State.FINISHED, "", ""


_WORDS = {
    Cause.MEMORY: "killed: over its memory",
    Cause.TIME: "killed: over its walltime",
    Cause.SITE: "the site failed it; it may be submitted again",
    Cause.START: "it could not be started: its directory or output could not be opened",
}


def _job_id(name: str) -> JobId:
    return JobId(name.removeprefix(NAME_PREFIX))
