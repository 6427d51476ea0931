"""What slurmrestd tells of jobs, in any of its versions. Pure; unknown fields are skipped, not parsed.

Numbers are plain until v0.0.38 and ``{"set", "infinite", "number"}`` later; states are a word, then lists of
words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.jobs.batch.protocol import (
    BatchJob,
    BatchRef,
    BatchState,
    Cause,
    GpuState,
    PartitionState,
)
from services.jobs.batch.slurm.hostlist import expand
from services.jobs.batch.slurm.site import gpus
from services.jobs.batch.slurm.states import standing
from services.jobs.batch.slurmrest.wire import Told


class Fault(msgspec.Struct):
    """One entry of ``errors``. The number's name depends on the call."""

    error: str = ""
    description: str = ""
    error_code: int = 0
    error_number: int = 0

    @property
    def code(self) -> int:
        return self.error_code or self.error_number


class Live(msgspec.Struct):
    """A job as slurmctld has it."""

    job_id: int
    name: str | None = ""
    user_name: str | None = ""
    user_id: int = -1
    job_state: Any = ""
    state_reason: str | None = ""
    submit_time: Any = 0
    nodes: str | None = ""
    exit_code: Any = None


class Jobs(msgspec.Struct):
    """GET /slurm/.../jobs and /job/ID."""

    jobs: list[Live] = []
    errors: list[Fault] = []


class _Head(msgspec.Struct):
    """Of a listing, which may be a hundred megabytes, all but the jobs themselves."""

    jobs: msgspec.Raw = msgspec.Raw(b"[]")
    errors: list[Fault] = []
    last_update: Any = None

    @property
    def empty(self) -> bool:
        return len(self.jobs) < 16 and bytes(self.jobs).split() in ([b"[]"], [b"[", b"]"])


class Submitted(msgspec.Struct):
    """POST /slurm/.../job/submit."""

    job_id: int = 0
    errors: list[Fault] = []


class Remembered(msgspec.Struct):
    """GET /slurmdb/.../jobs and /job/ID."""

    jobs: list[dict[str, Any]] = []
    errors: list[Fault] = []


class Place(msgspec.Struct):
    """GET /slurm/.../nodes, one node."""

    name: str
    partitions: list[str] = []
    state: Any = ""
    state_flags: list[str] = []
    cpus: int = 0
    alloc_cpus: int = 0
    gres: str | None = ""
    gres_used: str | None = ""


def number(value: Any) -> int | None:
    """A number of any version; None when it is unset or infinite."""
    if isinstance(value, dict):
        return int(value["number"]) if value.get("set") and not value.get("infinite") else None
    return value if isinstance(value, int) else None


def word(value: Any) -> str:
    """A state of any version. Of several words the first is the base state; COMPLETING counts more."""
    if isinstance(value, list):
        return "COMPLETING" if "COMPLETING" in value else str(value[0]) if value else ""
    return str(value or "")


def unchanged(told: Told) -> bool:
    """Whether an answer to ``update_time`` says that nothing has changed since.

    A 304 until v0.0.38; later a 200 that lists no job and tells no time of a change (v0.0.39 tells none ever:
    there an emptied queue is seen at the next whole listing).
    """
    if told.status == 304:
        return True
    try:
        answer = msgspec.json.decode(told.body, type=_Head)
    except msgspec.MsgspecError:
        return False
    return told.status == 200 and answer.empty and not answer.errors and not number(answer.last_update)


def live(job: Live, cluster: str) -> BatchJob:
    """What a sweep shows of a job."""
    reason = "" if job.state_reason in (None, "None") else str(job.state_reason)
    found = standing(word(job.job_state), reason)
    code, signal = _ended(job.exit_code)
    return BatchJob(
        ref=BatchRef(cluster, str(job.job_id), float(number(job.submit_time) or 0), job.name or ""),
        state=found.state,
        raw_state=word(job.job_state),
        reason=reason,
        stuck=found.stuck,
        nodes=expand(job.nodes or ""),
        cause=found.cause,
        may_still_run=found.may_still_run,
        exit_code=code if found.state.final else None,
        signal=signal if found.state.final else 0,
    )


def remembered(row: Mapping[str, Any], cluster: str, uids: Mapping[str, int]) -> BatchJob:
    """What accounting has of a job. ``uids``: who cancelled is told by name."""
    state, times = row["state"], row["time"]
    raw, reason = word(state["current"]), str(state.get("reason") or "")
    exit_code, signal = ending(row.get("exit_code") or {})
    killer = row.get("kill_request_user")
    if raw == "CANCELLED" and killer:
        raw += f" by {uids.get(killer, killer)}"
    found = standing(raw, reason, exit_code, signal)
    nodes = expand(str(row.get("nodes") or "").replace("None assigned", ""))
    cause = found.cause
    if found.state is BatchState.FAILED and cause is Cause.EXIT and not nodes:
        cause = Cause.START  # refused at submission, yet written down
    ran = found.state.final and cause not in (Cause.START, Cause.SITE)
    steps = row.get("steps") or []
    return BatchJob(
        ref=BatchRef(
            cluster, str(row["job_id"]), float(number(times.get("submission")) or 0), row["name"] or ""
        ),
        state=found.state,
        raw_state=raw,
        reason="" if reason == "None" else reason,
        stuck=found.stuck,
        nodes=nodes,
        cause=cause,
        may_still_run=found.may_still_run,
        exit_code=exit_code if ran else None,
        signal=signal if ran else 0,
        cancelled_by=found.cancelled_by,
        account=str(row.get("account") or ""),
        started_at=float(number(times.get("start")) or 0) or None,
        ended_at=float(number(times.get("end")) or 0) or None,
        elapsed_s=float(number(times.get("elapsed")) or 0),
        cpu_s=_seconds(times.get("total")),
        max_rss=max((_memory(step) for step in steps), default=0) or None,
        tres=_tres(row.get("tres")),
    )


def _ended(told: Any) -> tuple[int | None, int]:
    """Exit code and signal of a live job: a wait status until v0.0.39, what accounting has later."""
    if isinstance(told, dict) and "return_code" in told:
        return ending(told)
    status = number(told)
    return (None, 0) if status is None else (status >> 8, status & 0x7F)


def ending(told: Mapping[str, Any]) -> tuple[int | None, int]:
    """Exit code and signal."""
    signal = told.get("signal") or {}
    killed = number(signal.get("signal_id", signal.get("id"))) or 0
    return number(told.get("return_code")), killed


def _seconds(told: Any) -> float | None:
    if not isinstance(told, dict):
        return None
    return float(number(told.get("seconds")) or 0) + float(number(told.get("microseconds")) or 0) / 1e6


def _memory(step: Mapping[str, Any]) -> int:
    """The largest resident set of a step's tasks, bytes."""
    used = ((step.get("tres") or {}).get("requested") or {}).get("max") or []
    return max((number(one.get("count")) or 0 for one in used if one.get("type") == "mem"), default=0)


def _tres(told: Any) -> dict[str, str]:
    allocated = (told or {}).get("allocated") or []
    found = {}
    for one in allocated:
        count = number(one.get("count"))
        if count:
            kind = f"{one['type']}/{one['name']}" if one.get("name") else str(one["type"])
            found[kind] = f"{count}M" if kind == "mem" else str(count)
    return found


_TAKES_WORK = frozenset({"idle", "mixed", "allocated", "completing", "planned"})
_NO_WORK = frozenset({"drain", "down", "fail", "not_responding", "maintenance", "powered_down"})


def partitions(rows: list[dict[str, Any]], nodes: list[Place]) -> list[PartitionState]:
    """Partitions with what their nodes have free."""
    return [_partition(row, [node for node in nodes if row["name"] in node.partitions]) for row in rows]


def _partition(row: Mapping[str, Any], nodes: list[Place]) -> PartitionState:
    usable = [node for node in nodes if _usable(node)]
    total: dict[str, int] = {}
    free: dict[str, int] = {}
    for node in nodes:
        for gres, count in gpus(node.gres or "").items():
            total[gres] = total.get(gres, 0) + count
    for node in usable:
        used = gpus(node.gres_used or "")
        for gres, count in gpus(node.gres or "").items():
            free[gres] = free.get(gres, 0) + max(0, count - used.get(gres, 0))
    state = row.get("state") or (row.get("partition") or {}).get("state") or "UP"  # v0.0.39 tells none
    limit = row.get("max_time_limit", (row.get("maximums") or {}).get("time"))
    minutes = number(limit)
    return PartitionState(
        name=row["name"],
        up=word(state) == "UP",
        nodes=len(nodes),
        nodes_usable=len(usable),
        cpus=sum(node.cpus for node in nodes),
        cpus_free=sum(max(0, node.cpus - node.alloc_cpus) for node in usable),
        gpus=tuple(GpuState(gres, count, free.get(gres, 0)) for gres, count in sorted(total.items())),
        max_walltime_s=minutes * 60 if minutes and minutes > 0 else None,
    )


def _usable(node: Place) -> bool:
    words = {one.lower() for one in (node.state if isinstance(node.state, list) else [word(node.state)])}
    words |= {flag.lower() for flag in node.state_flags}
    return bool(words & _TAKES_WORK) and not words & _NO_WORK
