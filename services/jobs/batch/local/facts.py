"""What the files of a supervisor say: the state directory of one job → BatchJob."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from services.jobs.batch.protocol import BatchJob, BatchRef, BatchState, Cause, unique_name

T = TypeVar("T")

CLUSTER = "local"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """request.json: everything the supervisor needs. ``memory`` in bytes, 0 for no limit."""

    id: str
    submitted_at: float
    session: str
    launcher: str
    log: str
    environment: dict[str, str]
    walltime_s: int
    cpus: int
    memory: int
    slots: int
    after: tuple[tuple[str, bool], ...] = ()
    run: int = 0


class Process(msgspec.Struct, frozen=True):
    """supervisor.json and started.json. ``start`` in clock ticks since ``boot``."""

    pid: int
    start: int
    boot: str
    at: float = 0.0

    def alive(self) -> bool:
        """Whether this very process lives: a later one with its pid started at another moment."""
        try:
            if Path("/proc/sys/kernel/random/boot_id").read_text().strip() != self.boot:
                return False
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, IndexError):
            return False
        return int(fields[19]) == self.start and fields[0] != "Z"


class Ended(msgspec.Struct, frozen=True):
    """ended.json."""

    at: float
    cause: str
    code: int | None
    signal: int
    cancelled_by: int | None
    cpu_s: float
    max_rss: int


def over(directory: Path, run: int) -> bool:
    """Whether ``directory`` has an earlier run than ``run``, and that one's end."""
    request = _load(directory / "request.json", Request)
    return request is not None and request.run < run and (directory / "ended.json").exists()


_STATE_OF_CAUSE = {
    "cancelled": ("CANCELLED", BatchState.KILLED, Cause.CANCELLED),
    "dependency": ("CANCELLED", BatchState.KILLED, Cause.CANCELLED),
    "time": ("TIMEOUT", BatchState.FAILED, Cause.TIME),
    "memory": ("OUT_OF_MEMORY", BatchState.FAILED, Cause.MEMORY),
    "start": ("FAILED", BatchState.FAILED, Cause.START),
}


def read(directory: Path, host: str) -> BatchJob | None:
    """The job whose state lies in ``directory``; None when no supervisor ever took it, so that it never ran.

    A supervisor that is gone without an end written (machine restarted, or somebody killed it) is a lost
    node: its payload gets SIGKILL with it, but what that had put into the background may go on.
    """
    supervisor = _load(directory / "supervisor.json", Process)
    request = _load(directory / "request.json", Request)
    if supervisor is None or request is None:
        return None
    alive = supervisor.alive()  # before looking for the end, which it writes last
    started = _load(directory / "started.json", Process)
    ended = _load(directory / "ended.json", Ended)
    job = BatchJob(
        ref=BatchRef(CLUSTER, request.id, request.submitted_at, unique_name(directory.name)),
        state=BatchState.QUEUED,
        raw_state="PENDING",
        reason="" if started else "Resources",
        nodes=(host,) if started else (),
        started_at=started.at if started else None,
        account=directory.parent.parent.name,
    )
    if ended is not None:
        return _ended(job, ended)
    if not alive:
        return msgspec.structs.replace(
            job,
            state=BatchState.FAILED,
            raw_state="NODE_FAIL",
            cause=Cause.SITE,
            may_still_run=started is not None,
        )
    if started is not None:
        return msgspec.structs.replace(job, state=BatchState.RUNNING, raw_state="RUNNING")
    return job


def _ended(job: BatchJob, ended: Ended) -> BatchJob:
    raw, state, cause = _STATE_OF_CAUSE.get(ended.cause, ("", BatchState.FAILED, Cause.NONE))
    if not ended.cause:
        raw, state, cause = _by_exit(ended)
    return msgspec.structs.replace(
        job,
        state=state,
        raw_state=raw,
        reason="DependencyNeverSatisfied" if ended.cause == "dependency" else "",
        cause=cause,
        exit_code=ended.code,
        signal=ended.signal,
        cancelled_by=ended.cancelled_by,
        ended_at=ended.at,
        elapsed_s=ended.at - job.started_at if job.started_at else 0.0,
        cpu_s=ended.cpu_s,
        max_rss=ended.max_rss,
    )


def _by_exit(ended: Ended) -> tuple[str, BatchState, Cause]:
    if ended.signal:
        return "FAILED", BatchState.FAILED, Cause.SIGNAL
    if ended.code:
        return "FAILED", BatchState.FAILED, Cause.EXIT
    return "COMPLETED", BatchState.FINISHED, Cause.NONE


def _load(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None
