"""A job: what was asked for, and what became of it. Values only; ``states.py`` has the rules."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from edged.identity.words import AccountName, JobClass, JobId, Principal, VoName
from services.jobs.batch.protocol import BatchRef

Label = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Argument = Annotated[str, Meta(max_length=131072)]
FileName = Annotated[
    str, Meta(min_length=1, max_length=1024, pattern=r"^[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")
]
EnvironmentName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")]
Gres = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
Name = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$|^$")]


class State(StrEnum):
    """The states of a job. The last four are final."""

    ACCEPTED = "ACCEPTED"
    PREPARING = "PREPARING"
    SUBMITTING = "SUBMITTING"
    QUEUED = "QUEUED"
    HELD = "HELD"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    FINISHING = "FINISHING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"
    LOST = "LOST"

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self in FINAL


FINAL = frozenset({State.FINISHED, State.FAILED, State.KILLED, State.LOST})
IN_BATCH = frozenset({State.QUEUED, State.HELD, State.RUNNING, State.SUSPENDED, State.FINISHING})


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what callers send: an unknown field is an error."""


class Gpus(Request, frozen=True):
    """GPUs on each node. An empty kind means any kind of the chosen queue."""

    count: Annotated[int, Meta(ge=1, le=64)]
    kind: Name = ""


class Resources(Request, frozen=True):
    """What the job needs: ``memory`` in bytes on each node, ``walltime_s`` in seconds; 0: the default."""

    nodes: Annotated[int, Meta(ge=1, le=100_000)] = 1
    tasks: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    cpus_per_task: Annotated[int, Meta(ge=1, le=4096)] = 1
    memory: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    walltime_s: Annotated[int, Meta(ge=0, le=365 * 86400)] = 0
    exclusive: bool = False
    gpus: Gpus | None = None
    gres: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")], ...], Meta(max_length=16)
    ] = ()
    mpi: Name = ""


class After(Request, frozen=True):
    """Start only when another of the caller's jobs has ended; ``ok``: only if it FINISHED."""

    job: Annotated[str, Meta(min_length=1, max_length=64)]
    ok: bool = True


class Array(Request, frozen=True):
    """The same job ``count`` times, told apart by EDGED_ARRAY_INDEX; ``at_once`` under way (0: all)."""

    count: Annotated[int, Meta(ge=1, le=1000)]
    at_once: Annotated[int, Meta(ge=0, le=1000)] = 0


class Description(Request, frozen=True):
    """A job as it is asked for: an ``executable`` with ``arguments``, or a ``script`` beginning with ``#!``.

    ``inputs`` are names the caller will upload; the job waits for them. ``key`` makes a repeat harmless:
    the same key of the same principal gives the same job. ``outputs``: all the caller will fetch (None:
    whatever is there). ``programs`` are inputs to be made executable. ``reruns``: how often it may be started
    again after failing. ``delegation`` names a credential of the caller's, given to the job unless
    ``credential_in_job`` is false.
    ``source`` is the text this was translated from, for doors that speak another language.
    """

    name: Label = ""
    executable: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")] = ""
    arguments: Annotated[tuple[Argument, ...], Meta(max_length=4096)] = ()
    script: Annotated[str, Meta(max_length=1 << 20)] = ""
    environment: dict[EnvironmentName, Argument] = {}
    stdin: FileName | None = None
    stdout: FileName = "stdout"
    stderr: FileName = "stderr"
    join: bool = False
    inputs: Annotated[tuple[FileName, ...], Meta(max_length=1000)] = ()
    queue: Name = ""
    resources: Resources = Resources()
    software: Annotated[tuple[Label, ...], Meta(max_length=32)] = ()
    after: Annotated[tuple[After, ...], Meta(max_length=100)] = ()
    array: Array | None = None
    keep_s: Annotated[int, Meta(ge=0, le=365 * 86400)] = 0
    outputs: Annotated[tuple[FileName, ...], Meta(max_length=1000)] | None = None
    programs: Annotated[tuple[FileName, ...], Meta(max_length=1000)] = ()
    reruns: Annotated[int, Meta(ge=0, le=5)] = 0
    delegation: Annotated[str, Meta(max_length=64)] = ""
    credential_in_job: bool = True
    source: Annotated[str, Meta(max_length=8 << 20)] = ""
    key: Annotated[str, Meta(max_length=200)] = ""


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One line of a job's history."""

    at: float
    state: State
    reason: str = ""


class Job(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A job through all its states; the engine's memory and, encoded, its journal.

    Times are Unix seconds. The description lies beside it in the journal. ``attempt`` counts the
    submissions begun, ``attempt_at`` is when the last one began. ``run`` counts restarts, ``past`` has the
    batch jobs of the runs before; ``reruns`` are left. ``unaccounted``: it ended, accounting has not told how.
    """

    id: JobId
    owner: Principal
    account: AccountName
    vo: VoName
    job_class: JobClass
    queue: str
    batch: str
    name: str = ""
    key: str = ""
    digest: str = ""
    state: State = State.ACCEPTED
    cause: str = ""
    reason: str = ""
    raw_state: str = ""
    created_at: float = 0.0
    changed_at: float = 0.0
    restarted_at: float = 0.0
    unaccounted: bool = False
    resources: Resources = Resources()
    stdout: str = "stdout"
    stderr: str = "stderr"
    array: str = ""
    array_index: int | None = None
    at_once: int = 0
    after: tuple[After, ...] = ()
    missing: tuple[str, ...] = ()
    attempt: int = 0
    attempt_at: float = 0.0
    ref: BatchRef | None = None
    stuck_since: float = 0.0
    cancel: str = ""
    exit_code: int | None = None
    signal: int = 0
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    nodes: tuple[str, ...] = ()
    cpu_s: float | None = None
    gpu_s: float | None = None
    elapsed_s: float | None = None
    max_rss: int | None = None
    tres: dict[str, str] = {}
    keep_s: float = 0.0
    stdin: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = None
    delegation: str = ""
    credential_in_job: bool = True
    reruns: int = 0
    run: int = 0
    past: tuple[BatchRef, ...] = ()
    history: list[Step] = []


def begin_again(job: Job) -> None:
    """Forget the run that failed, but not its batch job: a look-up by name must not take it for new."""
    job.run += 1
    job.reruns -= 1
    job.restarted_at = time.time()
    if job.ref is not None:
        job.past = (*job.past, job.ref)
    job.ref, job.attempt, job.attempt_at, job.stuck_since = None, 0, 0.0, 0.0
    job.cancel, job.raw_state, job.exit_code, job.signal = "", "", None, 0
    job.queued_at = job.started_at = job.ended_at = None
    job.nodes, job.tres = (), {}
    job.cpu_s = job.gpu_s = job.elapsed_s = job.max_rss = None
    job.unaccounted = False


class View(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job as its owner sees it. Times are Unix seconds, memory bytes."""

    id: str
    state: State
    name: str = ""
    queue: str = ""
    vo: str = ""
    account: str = ""
    job_class: str = ""
    reason: str = ""
    cause: str = ""
    created_at: float
    changed_at: float
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int = 0
    batch: str = ""
    batch_id: str = ""
    batch_state: str = ""
    nodes: tuple[str, ...] = ()
    cpu_s: float | None = None
    elapsed_s: float | None = None
    max_rss: int | None = None
    allocated: dict[str, str] = {}
    inputs_missing: tuple[str, ...] = ()
    array: str = ""
    array_index: int | None = None
    kept_until: float | None = None
    resources: Resources = Resources()
    history: list[Step] = []


def view(job: Job, *, full: bool = True) -> View:
    """The owner's view; ``full`` adds the history."""
    return View(
        id=job.id,
        state=job.state,
        name=job.name,
        queue=job.queue,
        vo=job.vo,
        account=job.account,
        job_class=job.job_class.value,
        reason=job.reason,
        cause=job.cause,
        created_at=job.created_at,
        changed_at=job.changed_at,
        queued_at=job.queued_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        exit_code=job.exit_code,
        signal=job.signal,
        batch=job.batch,
        batch_id=job.ref.id if job.ref else "",
        batch_state=job.raw_state,
        nodes=job.nodes,
        cpu_s=job.cpu_s,
        elapsed_s=job.elapsed_s,
        max_rss=job.max_rss,
        allocated=job.tres,
        inputs_missing=job.missing,
        array=job.array,
        array_index=job.array_index,
        kept_until=job.ended_at + job.keep_s if job.state.final and job.ended_at is not None else None,
        resources=job.resources,
        history=job.history if full else [],
    )
