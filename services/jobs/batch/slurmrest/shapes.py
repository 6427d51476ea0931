"""A submission as slurmrestd takes it. Pure; the request changed at v0.0.39 and at v0.0.41.

Every version was run against real ones: v0.0.38 in 22.05, v0.0.38 to v0.0.40 in 23.11, v0.0.40 to v0.0.42 in
24.11, v0.0.42 to v0.0.45 in 26.05 (tests/real/batch_remote/suite.py).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from services.jobs.batch import script
from services.jobs.batch.protocol import Submission
from services.jobs.batch.slurm.submit import escaped

KNOWN = tuple(f"v0.0.{number}" for number in range(45, 37, -1))  # newest first

# slurmrestd gives a job no login environment; the launcher's own first line must stay the first
_HOME = b'export HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"\n'
_PATH = "/usr/local/bin:/usr/bin:/bin"


def newest(paths: list[str]) -> str | None:
    """The newest version that both sides know, from the paths of GET /openapi/v3."""
    there = {path.split("/")[2] for path in paths if path.startswith("/slurm/v")}
    return next((version for version in KNOWN if version in there), None)


def number(version: str) -> int:
    """``v0.0.40`` → 40."""
    return int(version.rpartition(".")[2])


def moment(version: str, seconds: float) -> str:
    """A time as ``update_time`` takes it: plain seconds until v0.0.39; v0.0.40 and v0.0.41 take only ``uts…``."""
    return f"{'' if number(version) < 40 else 'uts'}{int(seconds)}"


def request(version: str, asked: Submission, session: PurePosixPath, account: str) -> dict[str, Any]:
    """The body of POST /slurm/VERSION/job/submit."""
    first, _, rest = script.launcher(asked.job, session).partition(b"\n")
    text = (first + b"\n" + _HOME + rest).decode()
    job = {**_common(asked, session), **(_old(asked) if number(version) < 39 else _new(asked, version))}
    environment = {"PATH": _PATH, "USER": account, "LOGNAME": account}
    if number(version) < 39:
        return {"script": text, "job": {**job, "environment": environment}}
    job["environment"] = [f"{name}={value}" for name, value in environment.items()]
    if number(version) < 41:
        return {"script": text, "job": job}
    return {"job": {**job, "script": text}}


def _common(asked: Submission, session: PurePosixPath) -> dict[str, Any]:
    job: dict[str, Any] = {
        "name": asked.name,
        "current_working_directory": str(session),
        "standard_input": "/dev/null",
        "standard_output": escaped(session / script.LOG),
        "standard_error": escaped(session / script.LOG),
        "tasks": asked.tasks,
        "cpus_per_task": asked.cpus_per_task,
    }
    given = {
        "partition": asked.partition,
        "account": asked.slurm_account,
        "qos": asked.qos,
        "reservation": asked.reservation,
        "constraints": asked.constraint,
    }
    job |= {name: value for name, value in given.items() if value}
    if asked.after:
        kinds = (f"{'afterok' if after.ok else 'afterany'}:{after.ref.id}" for after in asked.after)
        job["dependency"] = ",".join(kinds)
    return job


def _gres(asked: Submission) -> list[str]:
    return [*([f"{asked.gpus.gres}:{asked.gpus.count}"] if asked.gpus else []), *asked.gres]


def _old(asked: Submission) -> dict[str, Any]:
    """v0.0.36 to v0.0.38."""
    job: dict[str, Any] = {
        "nodes": [asked.nodes, asked.nodes],
        "time_limit": _minutes(asked),
        "open_mode": "append",
        "no_requeue": True,  # its own document knows only "requeue", and takes even false for true
        "kill_on_invalid_dependency": True,
    }
    if asked.memory_per_node:
        job["memory_per_node"] = _megabytes(asked)
    if asked.exclusive:
        job["exclusive"] = "exclusive"  # its own document says "true", and refuses that
    if gres := _gres(asked):
        job["gres"] = ",".join(gres)
    return job


def _new(asked: Submission, version: str) -> dict[str, Any]:
    """v0.0.39 and later: numbers that may be unset are objects, words are lists of flags."""
    job: dict[str, Any] = {
        "minimum_nodes": asked.nodes,
        "maximum_nodes": asked.nodes,
        "time_limit": {"set": True, "number": _minutes(asked)},
        "requeue": False,
        "open_mode": "append" if number(version) < 40 else ["APPEND"],
        "flags": ["KILL_INVALID_DEPENDENCY"],
    }
    if asked.memory_per_node:
        job["memory_per_node"] = {"set": True, "number": _megabytes(asked)}
    if asked.exclusive:
        job["shared"] = ["none"]
    if gres := _gres(asked):
        job["tres_per_node"] = ",".join(f"gres/{one}" for one in gres)
    return job


def _minutes(asked: Submission) -> int:
    return max(1, -(-asked.walltime_s // 60))


def _megabytes(asked: Submission) -> int:
    return -(-asked.memory_per_node // (1 << 20))
