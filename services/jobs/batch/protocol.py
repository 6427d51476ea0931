"""What the job engine asks of a batch system, and the values both speak in.

A driver is found by the entry point group ``edged.batch``; the entry point names a ``Driver``. Every
driver passes ``services.jobs.batch.conformance``. Nothing here knows Slurm: a driver may run clients
of the site as the account, talk to a REST service, or reach a login node by SSH.

Two rules hold the promise that no job runs twice:

* a job is asked for by its *unique name*, and ``find`` looks that name up in everything the batch system
  remembers. ``find`` either answers for live queue **and** accounting, or raises Unavailable;
* whatever is not *provably* refused raises UnknownOutcome, and then nobody repeats before looking.

Times are Unix seconds, sizes bytes, durations seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from edged.errors import EdgeError

if TYPE_CHECKING:
    from edged.accounts.api import Batch, BatchVerb
    from edged.config.batch import Cluster
    from edged.config.jobs import Jobs
    from edged.lifecycle import Service
    from edged.sshca import Credentials
    from services.jobs.sessions import Sessions

NAME_PREFIX = "edged-"

ENTRY_POINTS = "edged.batch"


def unique_name(job: str) -> str:
    """The batch system's name of a gateway job: ``edged-<job id>``."""
    return NAME_PREFIX + job


class Refused(EdgeError):
    """The batch system said no, and there is no job. ``message`` has its own words, cleaned."""

    code = "refused"


class BatchState(StrEnum):
    """A job as the batch system sees it. The last three are final."""

    QUEUED = "QUEUED"
    HELD = "HELD"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    FINISHING = "FINISHING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"

    @property
    def final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({BatchState.FINISHED, BatchState.FAILED, BatchState.KILLED})


class Cause(StrEnum):
    """Why a job ended as it did; empty while it has not, or when it ended well."""

    NONE = ""
    EXIT = "exit"  # the payload's own exit code
    SIGNAL = "signal"
    MEMORY = "memory"
    TIME = "time"
    SITE = "site"  # node, fabric, preemption: not the job's fault, may be repeated
    START = "start"  # the batch system could not start it: directory or output not usable
    CANCELLED = "cancelled"  # by ``cancelled_by``, which tells the account from an administrator


class BatchRef(msgspec.Struct, frozen=True):
    """A job's identity. The id alone is none: batch systems lose jobs and give their ids out again.

    ``submitted_at`` is the batch system's own time where it is known, else 0.
    """

    cluster: str
    id: str
    submitted_at: float
    name: str

    def same(self, other: BatchRef) -> bool:
        """Whether both name one job: id and unique name agree."""
        return self.id == other.id and self.name == other.name and self.cluster == other.cluster


class GpuRequest(msgspec.Struct, frozen=True):
    """GPUs on each node: ``count`` of ``gres`` (the batch system's word, e.g. ``gpu:h200``)."""

    gres: str
    count: int


class Dependency(msgspec.Struct, frozen=True):
    """Start only after ``ref`` ended; ``ok``: only if it ended well, else the dependent is cancelled."""

    ref: BatchRef
    ok: bool = True


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a batch system must know to start a job whose files already lie in its session directory.

    Environment, arguments and redirections are not here: they are in the files (see ``script.py``).
    The driver knows where the session directory of ``job`` is. Empty words mean: not asked for. ``run``
    counts restarts: a later one begins only when the batch job of the one before is known to have ended.
    """

    job: str
    run: int = 0
    partition: str = ""
    slurm_account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    nodes: int = 1
    tasks: int = 1
    cpus_per_task: int = 1
    memory_per_node: int = 0
    walltime_s: int = 3600
    exclusive: bool = False
    gpus: GpuRequest | None = None
    gres: tuple[str, ...] = ()
    mpi: str = ""
    after: tuple[Dependency, ...] = ()

    @property
    def name(self) -> str:
        return unique_name(self.job)


class BatchJob(msgspec.Struct, frozen=True, kw_only=True):
    """One job as last seen. A sweep fills the first block; the rest comes with the final facts.

    ``stuck``: queued for a reason that does not end by itself. ``may_still_run``: final by the batch
    system's word, yet its processes may be alive (a lost node). ``exit_code`` is None while unknown.
    """

    ref: BatchRef
    state: BatchState
    raw_state: str
    reason: str = ""
    stuck: bool = False
    nodes: tuple[str, ...] = ()

    cause: Cause = Cause.NONE
    may_still_run: bool = False
    exit_code: int | None = None
    signal: int = 0
    cancelled_by: int | None = None  # uid
    account: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    elapsed_s: float | None = None
    cpu_s: float | None = None  # used, user and system
    gpu_s: float | None = None  # seconds of one GPU at work; None: not measured
    max_rss: int | None = None
    tres: Mapping[str, str] = {}  # allocated: {"cpu": "4", "gres/gpu:h200": "2", "mem": "8G"}


class Submitted(msgspec.Struct, frozen=True):
    """The batch system's acknowledgement. It may still lose the job: see ``find``."""

    ref: BatchRef


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between two sweeps: jobs new or changed, and names no longer there."""

    changed: Sequence[BatchJob]
    gone: frozenset[str]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Everything visible at one moment, one opaque record per job.

    10,000 queued jobs are 10,000 equal records from one poll to the next, so only the difference is
    ever parsed (tests/bench/batch_sweep.py holds the cost). ``read`` gives None for a record that is
    no job of ours.
    """

    taken_at: float
    records: frozenset[bytes]
    read: Callable[[bytes], BatchJob | None]

    def jobs(self) -> list[BatchJob]:
        """All jobs of ours."""
        return [job for record in self.records if (job := self.read(record)) is not None]

    def since(self, before: Sweep | None) -> Changes:
        """What differs from ``before``; with None, everything is new."""
        if before is None:
            return Changes(self.jobs(), frozenset())
        changed = [job for record in self.records - before.records if (job := self.read(record)) is not None]
        still = {job.ref.name for job in changed}
        left = (self.read(record) for record in before.records - self.records)
        return Changes(changed, frozenset(job.ref.name for job in left if job and job.ref.name not in still))


class GpuState(msgspec.Struct, frozen=True):
    """GPUs of one GRES kind. ``free`` counts only nodes that take work."""

    gres: str
    total: int
    free: int


class PartitionState(msgspec.Struct, frozen=True, kw_only=True):
    """A partition now. CPUs free count only nodes that take work."""

    name: str
    up: bool
    nodes: int
    nodes_usable: int
    cpus: int
    cpus_free: int
    gpus: tuple[GpuState, ...] = ()
    max_walltime_s: int | None = None  # None: no limit, or unknown


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """A budget of the site's accounting, in minutes of ``tres`` (e.g. ``cpu``, ``gres/gpu``)."""

    account: str
    tres: str
    limit_min: int
    used_min: int

    @property
    def left_min(self) -> int:
        return max(0, self.limit_min - self.used_min)


class SiteState(msgspec.Struct, frozen=True, kw_only=True):
    """What ``/v1/site`` can tell of a batch system. ``version`` is its own, e.g. ``22.05.8``."""

    taken_at: float
    cluster: str
    version: str
    partitions: tuple[PartitionState, ...] = ()
    allocations: tuple[Allocation, ...] = ()


class BatchSystem(Protocol):
    """One batch system, used by the engine only. Every call raises Unavailable when it cannot answer."""

    name: str

    async def submit(self, grant: bytes, submission: Submission) -> Submitted:
        """Ask for a job, once. ``grant`` is its job grant; its files already lie in the session directory.

        Raises Refused (no job, asking again is useless), Busy (no job, asking again is useful), and
        UnknownOutcome (there may be a job: ``find`` before anything else).
        """
        ...

    async def find(self, grant: bytes, job: str, since: float) -> Sequence[BatchJob]:
        """All jobs with the unique name of ``job`` submitted at ``since`` or later, live or remembered.

        An empty answer means: now unknown to the live queue and to accounting, which may lag for some
        seconds behind; the engine asks until the answer has stood for its ``settle_s``.
        """
        ...

    async def sees_all(self, grant: bytes) -> bool:
        """Whether one account's sweep shows the jobs of all; otherwise each account sweeps its own."""
        ...

    async def sweep(self, grant: bytes, accounts: Sequence[str] = ()) -> Sweep:
        """The jobs of ``accounts``, or of the standing ``grant``'s own account, as that account sees them."""
        ...

    async def finals(self, grant: bytes, refs: Sequence[BatchRef]) -> Sequence[BatchJob]:
        """What accounting knows of jobs that ended or left the sweep; those it does not know are missing.

        Not every answer is final: accounting lags, and it goes on showing as waiting or running what the
        live queue lost. A job that stays so here while sweeps do not show it is lost. Any number of refs.
        """
        ...

    async def cancel(self, grant: bytes, ref: BatchRef) -> None:
        """Ask for its end. A job that is gone already is no error; the sweep tells what became of it."""
        ...

    async def site(self, grant: bytes) -> SiteState:
        """Partitions, GPUs and, where accounting knows it, the account's remaining allocation."""
        ...


@runtime_checkable
class KnowsNodes(Protocol):
    """A batch system that can tell where its nodes are: their names need not be known outside of it."""

    async def addresses(self, grant: bytes, nodes: Sequence[str]) -> Sequence[str]:
        """Addresses (or other names) of ``nodes``, those it knows."""
        ...


class Driver(Protocol):
    """What an entry point of the group ``edged.batch`` names."""

    name: str
    verbs: tuple[type[BatchVerb], ...]

    def create(self, config: Jobs, accounts: Batch) -> BatchSystem:
        """A batch system that does its work through ``accounts``."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a driver of a [[jobs.cluster]] is given. ``reached``: the clusters made before it, by name."""

    config: Jobs
    cluster: Cluster
    accounts: Batch
    credentials: Credentials
    reached: Mapping[str, Reached]


@dataclass(frozen=True, slots=True)
class Reached:
    """A batch system that lies elsewhere.

    ``sessions``: how its session directories are reached, None when they are mounted here. ``service``: what
    must run for it to work (connections), started before the engine; None when there is nothing.
    """

    system: BatchSystem
    sessions: Sessions | None = None
    service: Service | None = None


@runtime_checkable
class Reaching(Protocol):
    """What an entry point names whose batch systems are configured by [[jobs.cluster]]."""

    name: str
    verbs: tuple[type[BatchVerb], ...]

    def reach(self, site: Surroundings) -> Reached:
        """The batch system that ``site.cluster`` describes. Raises ConfigError."""
        ...


def session_directory(sessions: PurePosixPath, job: str) -> PurePosixPath:
    """Where a job's files lie, below the account's own sessions directory."""
    return sessions / job
