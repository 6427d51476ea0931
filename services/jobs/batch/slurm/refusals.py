"""When sbatch failed: was it certainly refused, or may there be a job?

sbatch ends with 1 for everything, so its words are all there is. Only slurmctld's own answers count
as proof that there is no job, and each has one fixed text (slurm_errno.c, the same from 22.05 to 25.05).
Every other failure, known or new, is an unknown outcome: looking for the job by name then tells the truth.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Verdict(StrEnum):
    REFUSED = "refused"
    BUSY = "busy"
    UNKNOWN = "unknown"


_FAILED = "Batch job submission failed: "

REFUSALS = frozenset(
    {
        "Invalid partition name specified",
        "No partition specified or system default partition",
        "Access/permission denied",
        "User's group not permitted to use this partition",
        "Requested nodes not in this partition",
        "More processors requested than permitted",
        "Node count specification invalid",
        "Job size specification needs to be provided",
        "Job script not specified",
        "Invalid user id",
        "Invalid group id",
        "Pathname of a file, directory or other parameter too long",
        "Requested node configuration is not available",
        "Requested partition configuration not available now",
        "Requested topology configuration is not available",
        "Invalid node name specified",
        "Task distribution specification invalid",
        "Task count specification invalid",
        "CPU count specification invalid",
        "Memory required by task is not available",
        "Invalid feature specification",
        "Invalid account or account/partition combination specified",
        "Invalid qos specification",
        "Invalid wckey specification",
        "Invalid license specification",
        "Invalid generic resource (gres) specification",
        "Invalid Trackable RESource (TRES) specification",
        "Invalid GRES specification (with and without type identification)",
        "Requested GRES option unsupported by configured SelectType plugin",
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "Requested time limit is invalid (missing or exceeds some limit)",
        "Access denied to requested reservation",
        "Requested reservation is invalid",
        "Invalid time specified",
        "Invalid job id specified",
        "Circular job dependency",
        "Job dependency problem",
        "Job cannot be submitted without the current working directory specified.",
        "Required partition not available (inactive or drain)",
        "Required node not available (down, drained or reserved)",
    }
)

BUSY = frozenset(
    {
        "MaxJobCount limit reached",
        "Slurm backup controller in standby mode",
        "I/O error writing script/environment to file",
        "Requested reservation not usable now",
        "Requested operation is presently disabled",
    }
)

# a limit on the number of submitted jobs, printed beside the accounting policy's text; it passes as jobs end
_SUBMIT_LIMIT = re.compile(r"(Assoc|QOS)\w*Submit\w*")

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def judge(stderr: str) -> Verdict:
    """What the words of a failed sbatch prove."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in stderr.splitlines()]
    said = {line.removeprefix(_FAILED) for line in lines if line.startswith(_FAILED)}
    if len(said) != 1:  # sbatch repeats some requests by itself: what then counts is not one answer
        return Verdict.UNKNOWN
    answer = said.pop()
    if answer in BUSY:
        return Verdict.BUSY
    if answer not in REFUSALS:
        return Verdict.UNKNOWN
    return Verdict.BUSY if any(_SUBMIT_LIMIT.fullmatch(line) for line in lines) else Verdict.REFUSED


def clean(stderr: str, limit: int = 500) -> str:
    """The client's words in one printable line, safe to show."""
    lines = (line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in stderr.splitlines())
    return _UNPRINTABLE.sub("?", "; ".join(line for line in lines if line))[:limit]
