"""Reading sacct: one job row, then its steps; the same id may come back for another job."""

from __future__ import annotations

import re

from services.jobs.batch.protocol import BatchJob, BatchRef, BatchState, Cause
from services.jobs.batch.slurm.hostlist import expand
from services.jobs.batch.slurm.states import standing

# the name comes last: a foreign job that had the same id may have '|' in it
FIELDS = (
    "JobIDRaw", "Cluster", "State", "ExitCode", "Submit", "Start", "End", "ElapsedRaw", "TotalCPU", "MaxRSS",
    "NodeList", "AllocTRES", "Account", "Reason", "JobName",
)  # fmt: skip

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


def read(output: str) -> list[BatchJob]:
    """Jobs in the order printed, steps folded into them. Rows of an unknown shape are skipped."""
    jobs: list[tuple[dict[str, str], list[dict[str, str]]]] = []
    for line in output.splitlines():
        values = line.split("|", len(FIELDS) - 1)
        if len(values) != len(FIELDS):
            continue
        row = dict(zip(FIELDS, values, strict=True))
        id_, dot, _ = row["JobIDRaw"].partition(".")
        if not dot:
            jobs.append((row, []))
        elif jobs and jobs[-1][0]["JobIDRaw"] == id_:
            jobs[-1][1].append(row)
    return [_job(row, steps) for row, steps in jobs]


def _job(row: dict[str, str], steps: list[dict[str, str]]) -> BatchJob:
    code, _, number = row["ExitCode"].partition(":")
    exit_code, signal = _integer(code), _integer(number) or 0
    nodes = expand(row["NodeList"])
    found = standing(row["State"], row["Reason"], exit_code, signal)
    cause = found.cause
    if found.state is BatchState.FAILED and cause is Cause.EXIT and not nodes:
        cause = Cause.START  # refused at submission, yet written down: FAILED 1:0 without ever having nodes
    ran = found.state.final and cause not in (Cause.START, Cause.SITE)
    return BatchJob(
        ref=BatchRef(row["Cluster"], row["JobIDRaw"], moment(row["Submit"]) or 0.0, row["JobName"]),
        state=found.state,
        raw_state=row["State"],
        reason="" if row["Reason"] == "None" else row["Reason"],
        stuck=found.stuck,
        nodes=nodes,
        cause=cause,
        may_still_run=found.may_still_run,
        exit_code=exit_code if ran else None,
        signal=signal if ran else 0,
        cancelled_by=found.cancelled_by,
        account=row["Account"],
        started_at=moment(row["Start"]),
        ended_at=moment(row["End"]),
        elapsed_s=float(_integer(row["ElapsedRaw"]) or 0),
        cpu_s=duration(row["TotalCPU"]),
        max_rss=max((size(step["MaxRSS"]) or 0 for step in steps), default=0) or None,
        tres=tres(row["AllocTRES"]),
    )


def moment(text: str) -> float | None:
    """Unix seconds (SLURM_TIME_FORMAT=%s); None for Unknown, None, N/A."""
    return float(text) if text.isdigit() else None


def duration(text: str) -> float | None:
    """``[days-[hours:]]minutes:seconds[.thousandths]`` in seconds."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def size(text: str) -> int | None:
    """``2692K`` in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)", text)
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


def tres(text: str) -> dict[str, str]:
    """``cpu=4,gres/gpu:h200=2`` as a mapping."""
    return {key: value for key, equal, value in (item.partition("=") for item in text.split(",")) if equal}


def _integer(text: str) -> int | None:
    return int(text) if text.isdigit() else None
