"""The information document of a job: GLUE2's ComputingActivity as A-REX writes it. Pure.

Every value is a string or a list of strings: HTCondor takes no other type. ``ExitCode`` is absent when it is
not known, and then ``Error`` says why.
"""

from __future__ import annotations

import time
from typing import Any

from services.jobs.doors.arc.states import arc_state, info_states
from services.jobs.model import Job, State

HIDDEN = ".arc/"


def moment(at: float) -> str:
    """``2025-01-31T23:59:59Z``, the only form clients parse."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def activity(job: Job, base: str, credential_ends_at: float = 0.0) -> dict[str, Any]:
    """The document of one job. ``base``: ``https://host/arex/rest/1.0``."""
    need = job.resources
    found: dict[str, Any] = {
        "CreationTime": moment(time.time()),
        "ID": f"urn:caid:{base.partition('://')[2].partition('/')[0]}:org.nordugrid.arcrest:{job.id}",
        "IDFromEndpoint": job.id,
        "Name": job.name,
        "Type": "single",
        "JobDescription": "emies:adl",
        "State": info_states(job),
        "Owner": job.owner.subject,
        "LocalOwner": job.account,
        "Queue": job.queue,
        "RequestedSlots": str(need.tasks * need.cpus_per_task),
        "StdIn": job.stdin,
        "StdOut": _shown(job.stdout),
        "StdErr": _shown(job.stderr),
        "SubmissionTime": moment(job.created_at),
        "SubmissionHost": "",
        "OtherInfo": _other(job),
        **_requested(job),
        **_outcome(job),
    }
    if credential_ends_at:
        found["ProxyExpirationTime"] = moment(credential_ends_at)
    return {key: value for key, value in found.items() if value not in ("", [])}


def _shown(name: str) -> str:
    return "" if name.startswith(HIDDEN) else name


def _other(job: Job) -> list[str]:
    gpus = job.resources.gpus
    wanted = [f"RequestedGPUs={gpus.count * job.resources.nodes}"] if gpus else []
    return [f"SessionDir=session/{job.id}", *wanted]


def _requested(job: Job) -> dict[str, str]:
    wall_s = job.resources.walltime_s
    slots = job.resources.tasks * job.resources.cpus_per_task
    if not wall_s:
        return {}
    return {"RequestedTotalWallTime": str(wall_s), "RequestedTotalCPUTime": str(wall_s * slots)}


def _outcome(job: Job) -> dict[str, Any]:
    """What the batch system and accounting told so far."""
    found: dict[str, Any] = {
        "LocalIDFromManager": job.ref.id if job.ref else "",
        "ExecutionNode": list(job.nodes),
        "UsedTotalWallTime": _whole(job.elapsed_s),
        "UsedTotalCPUTime": _whole(job.cpu_s),
        "UsedMainMemory": str(job.max_rss // 1024) if job.max_rss else "",
    }
    if job.started_at:
        found["StartTime"] = moment(job.started_at)
    if not job.state.final:
        return found
    ended = job.ended_at or job.changed_at
    found |= {
        "UsedTotalWallTime": _whole(job.elapsed_s or 0.0),
        "UsedTotalCPUTime": _whole(job.cpu_s or 0.0),
        "EndTime": moment(ended),
        "ComputingManagerEndTime": moment(ended),
        "WorkingAreaEraseTime": moment(ended + job.keep_s),
    }
    if job.exit_code is not None and job.state in (State.FINISHED, State.FAILED):
        found["ExitCode"] = str(job.exit_code)
    if job.state is not State.FINISHED:
        found["Error"] = job.reason or f"the job ended {arc_state(job)} (exit code {job.exit_code})"
        if job.state is State.FAILED and job.reruns:
            found["RestartState"] = ["arcrest:ACCEPTED"]
    return found


def _whole(value: float | None) -> str:
    return "" if value is None else str(max(0, round(value)))
