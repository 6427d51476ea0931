"""From a job and the node's record to Kubernetes' container states. Pure.

Never an entry without containers: virtual kubelets take 0 of 0 terminated for success. Reasons other
than the exit code survive only in the message, so the batch system's cause is in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from services.jobs.doors.interlink.pods import AskedPod, NameOnly
from services.jobs.doors.interlink.records import ContainerRecord, Past, PodRecord
from services.jobs.model import Job, State

MANY = 1_000_000  # what a job wrote must fit where Kubernetes puts it
KILLED = 137
SITE_FAILED = 143
REASONS = {
    "memory": "OOMKilled",
    "time": "DeadlineExceeded",
    "site": "NodeLost",
    "start": "StartError",
    "cancelled": "Cancelled",
    "stuck": "Unschedulable",
    "refused": "Refused",
    "denied": "Refused",
}


class Waiting(msgspec.Struct, frozen=True):
    reason: str
    message: str


class Running(msgspec.Struct, frozen=True, rename="camel"):
    started_at: str


class Terminated(msgspec.Struct, frozen=True, rename="camel"):
    exit_code: int
    reason: str
    message: str
    started_at: str
    finished_at: str


class ContainerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exactly one of them; none as a last state that never was."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    state: ContainerState
    last_state: ContainerState
    ready: bool
    restart_count: int
    image: str
    image_id: str = msgspec.field(default="", name="imageID")
    started: bool = False


class PodStatus(msgspec.Struct, frozen=True):
    """One element of the answer to /status."""

    name: str
    uid: str = msgspec.field(name="UID")
    namespace: str
    jid: str = msgspec.field(name="JID")
    containers: list[ContainerStatus]
    init_containers: list[ContainerStatus] = msgspec.field(name="initContainers")


_NEVER = ContainerState()


def pod_status(asked: AskedPod, job: Job, record: PodRecord | None) -> PodStatus | None:
    """The status of a pod; None when the question names no container."""
    main = asked.spec.containers or ()
    if not main:
        return None
    init = asked.spec.init_containers or ()
    return PodStatus(
        name=asked.metadata.name,
        uid=asked.metadata.uid,
        namespace=asked.metadata.namespace,
        jid=job.id,
        containers=_all(main, job, record),
        init_containers=_all(init, job, record),
    )


def _all(containers: Iterable[NameOnly], job: Job, record: PodRecord | None) -> list[ContainerStatus]:
    known = record.containers if record is not None else {}
    return [_container(c, job, known.get(c.name)) for c in containers]


def _container(asked: NameOnly, job: Job, record: ContainerRecord | None) -> ContainerStatus:
    state = _state(job, record)
    running = state.running is not None
    return ContainerStatus(
        name=asked.name,
        state=state,
        last_state=_past(record.last) if record and record.last else _NEVER,
        ready=running,
        restart_count=max(0, min(record.restarts, MANY)) if record else 0,
        image=asked.image or "",
        started=running,
    )


def _state(job: Job, record: ContainerRecord | None) -> ContainerState:
    if record is not None and record.state == "terminated":
        return _ended(record.exit, record.reason, _told(job, record), record.started, record.ended)
    if job.state.final:
        return _ended_with(job, record)
    if job.state in (State.RUNNING, State.SUSPENDED, State.FINISHING):
        if record is not None and record.state == "running":
            return ContainerState(running=Running(_time(record.started)))
        if record is not None:
            return ContainerState(waiting=Waiting(record.reason or "PodInitializing", record.message))
        return ContainerState(waiting=Waiting("PodInitializing", "the job runs"))
    return ContainerState(waiting=Waiting("Pending", _waits(job)))


def _waits(job: Job) -> str:
    where = f"{job.state.value.lower()} in {job.queue}"
    return f"{where}: {job.reason}" if job.reason else where


def _told(job: Job, record: ContainerRecord) -> str:
    """The runner's words, and the batch system's when it ended the job."""
    if job.state is State.FINISHED or not job.state.final or job.cause in ("", "exit"):
        return record.message
    return "; ".join(filter(None, (record.message, cause(job))))


def _ended_with(job: Job, record: ContainerRecord | None) -> ContainerState:
    """The job is over, and this container did not tell its own end."""
    started = (record.started if record else 0.0) or job.started_at or job.created_at
    ended = job.ended_at or job.changed_at
    if job.state is State.FINISHED:
        return _ended(0, "Completed", "", started, ended)
    return _ended(_code(job), REASONS.get(job.cause, "Error"), cause(job), started, ended)


def _code(job: Job) -> int:
    """Never 0: it did not end well. As a shell tells a signal."""
    if job.signal:
        return 128 + job.signal
    if job.cause == "memory":
        return KILLED
    return job.exit_code or (SITE_FAILED if job.started_at else 1)


def cause(job: Job) -> str:
    """Why the batch system ended it: ``TIMEOUT: killed: over its walltime, after 3600 s on n1``."""
    words = [job.raw_state or job.state.value]
    if job.reason:
        words.append(f": {job.reason}")
    if job.started_at and job.ended_at:
        words.append(f", after {max(0, round(job.ended_at - job.started_at))} s")
    if job.nodes:
        words.append(f" on {_some(job.nodes)}")
    return "".join(words)


def _some(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")


def _ended(code: int, reason: str, message: str, started: float, ended: float) -> ContainerState:
    return ContainerState(
        terminated=Terminated(int(code) & 0xFF, reason[:200], message[:2000], _time(started), _time(ended))
    )


def _past(past: Past) -> ContainerState:
    return _ended(past.exit, past.reason, past.message, past.started, past.ended)


def _time(at: float) -> str:
    """RFC 3339 with Z; what a job wrote may be no time at all."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01T00:00:00Z"
