"""The ``pq`` driver. Everything an author of a driver must decide is in here, in the order it matters.

What the site registers:

    [project.entry-points."edged.batch"]
    pq = "example_batch.driver:DRIVER"
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from edged.accounts.api import Batch, BatchVerb
from edged.errors import Conflict, Unavailable, UnknownOutcome
from edged.identity.words import Action
from services.jobs.batch import script
from services.jobs.batch.protocol import (
    NAME_PREFIX,
    BatchJob,
    BatchRef,
    BatchState,
    Cause,
    PartitionState,
    Refused,
    SiteState,
    Submission,
    Submitted,
    Sweep,
    session_directory,
    unique_name,
)

if TYPE_CHECKING:
    from edged.accounts.clients import Workplace
    from edged.config.jobs import Jobs

CLUSTER = "pq"
SLOTS = 2
DEADLINE_S = 20.0

# -- 1. verbs: what runs as the account. Typed fields in, argv built there, never a shell -------------


class Submit(BatchVerb, frozen=True, kw_only=True):
    """``pq submit``. The lock lets ``Find`` know whether this client still lives."""

    action: ClassVar[Action] = Action.JOB_SUBMIT
    job: str
    seconds: int

    def perform(self, where: Workplace) -> str:
        session = session_directory(PurePosixPath(where.sessions), self.job)
        argv = ["pq", "submit", unique_name(self.job), str(session), str(self.seconds)]
        with where.lock(f"pq-{self.job}") as lock:
            launcher = script.launcher(self.job, session)
            done = where.run_client(argv, stdin=launcher, deadline_s=DEADLINE_S, lock_fd=lock)
        if done.code != 0 or not done.stdout.strip().isdigit():
            # pq has no way to say "no": whatever is no id may still have been taken
            raise UnknownOutcome(
                "pq did not acknowledge", detail=done.stderr.decode("utf-8", "replace")[:300]
            )
        return done.stdout.decode().strip()


class List(BatchVerb, frozen=True, kw_only=True):
    """``pq list``: one JSON line a job, waiting, running and ended."""

    action: ClassVar[Action] = Action.JOB_POLL
    unless: str = ""  # raise Unavailable while a submission of this job still runs

    def perform(self, where: Workplace) -> bytes:
        if self.unless and where.client_alive(f"pq-{self.unless}"):
            raise Unavailable("an earlier pq submit of this job still runs")
        done = where.run_client(["pq", "list"], deadline_s=DEADLINE_S, output_limit=16 << 20)
        if done.code != 0 or done.timed_out or done.truncated:
            raise Unavailable("pq list did not answer")
        return done.stdout


class Delete(BatchVerb, frozen=True, kw_only=True):
    """``pq delete``, by the unique name; an unknown one is no error."""

    action: ClassVar[Action] = Action.JOB_CANCEL
    job: str

    def perform(self, where: Workplace) -> None:
        if where.run_client(["pq", "delete", unique_name(self.job)], deadline_s=DEADLINE_S).code != 0:
            raise Unavailable("pq delete did not answer")


# -- 2. reading: pure, one record in, one BatchJob out ------------------------------------------------

_STATES = {"WAITING": BatchState.QUEUED, "RUNNING": BatchState.RUNNING}
_CAUSES = {"time": (BatchState.FAILED, Cause.TIME), "deleted": (BatchState.KILLED, Cause.CANCELLED)}


def read(line: bytes) -> BatchJob | None:
    """A line of ``pq list``; None for a job that is not ours."""
    told: dict[str, Any] = msgspec.json.decode(line)
    if not told["name"].startswith(NAME_PREFIX):
        return None
    state, cause = _STATES.get(told["state"], BatchState.FINISHED), Cause.NONE
    if told["state"] == "ENDED":
        state, cause = _ended(told)
    return BatchJob(
        ref=BatchRef(CLUSTER, told["id"], told["submitted"], told["name"]),
        state=state,
        raw_state=told["state"],
        nodes=(told["host"],) if "host" in told else (),
        cause=cause,
        exit_code=told.get("exit") if state.final else None,
        signal=told.get("signal", 0),
        cancelled_by=told["uid"] if cause is Cause.CANCELLED else None,  # only its owner may delete a job
        started_at=told.get("started"),
        ended_at=told.get("ended"),
    )


def _ended(told: dict[str, Any]) -> tuple[BatchState, Cause]:
    if told.get("cause"):
        return _CAUSES[told["cause"]]
    if told.get("signal"):
        return BatchState.FAILED, Cause.SIGNAL
    return (BatchState.FAILED, Cause.EXIT) if told.get("exit") else (BatchState.FINISHED, Cause.NONE)


# -- 3. the batch system: the engine's calls, in terms of the verbs -----------------------------------


class Pq:
    """See ``protocol.BatchSystem`` for what each call promises."""

    name = "pq"

    def __init__(self, accounts: Batch) -> None:
        self._accounts = accounts

    async def submit(self, grant: bytes, submission: Submission) -> Submitted:
        if why := impossible(submission):  # refused before anything is asked: certainly no job
            raise Refused(why)
        verb = Submit(job=submission.job, seconds=submission.walltime_s)
        try:
            found = await self._accounts.perform(grant, verb, str, deadline_s=DEADLINE_S + 10)
        except (Unavailable, Conflict) as error:  # the worker may have died after pq had spoken
            raise UnknownOutcome("it is not known whether pq has the job", detail=str(error)) from error
        return Submitted(BatchRef(CLUSTER, found, 0.0, submission.name))

    async def find(self, grant: bytes, job: str, since: float) -> Sequence[BatchJob]:
        return [one for one in await self._jobs(grant, unless=job) if one.ref.name == unique_name(job)]

    async def sees_all(self, grant: bytes) -> bool:
        return False  # each account has a queue of its own

    async def sweep(self, grant: bytes, accounts: Sequence[str] = ()) -> Sweep:
        taken_at = time.time()
        return Sweep(taken_at, frozenset((await self._lines(grant)).splitlines()), read)

    async def finals(self, grant: bytes, refs: Sequence[BatchRef]) -> Sequence[BatchJob]:
        return [one for one in await self._jobs(grant) if any(one.ref.same(ref) for ref in refs)]

    async def cancel(self, grant: bytes, ref: BatchRef) -> None:
        verb = Delete(job=ref.name.removeprefix(NAME_PREFIX))
        await self._accounts.perform(grant, verb, type(None), deadline_s=DEADLINE_S + 10)

    async def site(self, grant: bytes) -> SiteState:
        running = sum(one.state is BatchState.RUNNING for one in await self._jobs(grant))
        queue = PartitionState(
            name="pq", up=True, nodes=1, nodes_usable=1, cpus=SLOTS, cpus_free=max(0, SLOTS - running)
        )
        return SiteState(taken_at=time.time(), cluster=CLUSTER, version="1", partitions=(queue,))

    async def _jobs(self, grant: bytes, unless: str = "") -> list[BatchJob]:
        lines = (await self._lines(grant, unless)).splitlines()
        return [job for line in lines if (job := read(line)) is not None]

    async def _lines(self, grant: bytes, unless: str = "") -> bytes:
        return await self._accounts.perform(grant, List(unless=unless), bytes, deadline_s=DEADLINE_S + 10)


def impossible(submission: Submission) -> str:
    """Why pq cannot do it, or nothing."""
    if submission.nodes > 1:
        return "pq has one node"
    if submission.gpus is not None or submission.gres:
        return "pq has no GPUs"
    if submission.after:
        return "pq has no dependencies"
    return ""


# -- 4. what the entry point names ---------------------------------------------------------------------


class PqDriver:
    name = "pq"
    verbs: tuple[type[BatchVerb], ...] = (Submit, List, Delete)

    def create(self, config: Jobs, accounts: Batch) -> Pq:
        return Pq(accounts)


DRIVER = PqDriver()
