"""From Slurm's words to the gateway's: one pure table.

Base states and flags are those of slurm.h (22.05 to 25.11). What a job's end means was measured on a real
Slurm 22.05; see the recorded outputs in tests/recorded/slurm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.jobs.batch.protocol import BatchState, Cause

CANNOT_START = 53  # "0:53": the working directory or an output file could not be opened; nothing ran


@dataclass(frozen=True, slots=True)
class Standing:
    """What a state, its reason and its exit code say together."""

    state: BatchState
    cause: Cause = Cause.NONE
    stuck: bool = False
    may_still_run: bool = False
    cancelled_by: int | None = None


_LIVE = {
    "PENDING": BatchState.QUEUED,
    "CONFIGURING": BatchState.QUEUED,  # nodes boot for it; nothing runs yet
    "POWER_UP_NODE": BatchState.QUEUED,
    "EXPEDITING": BatchState.QUEUED,
    "REQUEUED": BatchState.QUEUED,
    "REQUEUE_FED": BatchState.QUEUED,
    "RESV_DEL_HOLD": BatchState.HELD,
    "REQUEUE_HOLD": BatchState.HELD,
    "SPECIAL_EXIT": BatchState.HELD,
    "RUNNING": BatchState.RUNNING,
    "RESIZING": BatchState.RUNNING,
    "SIGNALING": BatchState.RUNNING,
    "SUSPENDED": BatchState.SUSPENDED,
    "STOPPED": BatchState.SUSPENDED,
    "COMPLETING": BatchState.FINISHING,  # its exit code is not to be read yet
    "STAGE_OUT": BatchState.FINISHING,
}

_ENDED_BY_LIMIT = {"OUT_OF_MEMORY": Cause.MEMORY, "TIMEOUT": Cause.TIME, "DEADLINE": Cause.TIME}

# the site's fault; Slurm kills nothing on a node it cannot reach, so the payload may go on there
_ENDED_BY_SITE = frozenset(
    {"NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "PREEMPTED", "REVOKED"}
)

_HELD_REASONS = re.compile(r"JobHeld(User|Admin)|JobHoldMaxRequeue|.*\b(requeued )?held( state)?$")

# Reasons that no other job's end removes. A limit on what runs at once (AssocMaxJobsLimit, QOSGrpCpuLimit …)
# passes when others end, so it is waiting like any other.
_STUCK_REASONS = re.compile(
    r"PartitionTimeLimit|PartitionNodeLimit|PartitionConfig|DependencyNeverSatisfied|BadConstraints"
    r"|Invalid(Account|QOS)|QOSNotAllowed|AccountNotAllowed|QOSTimeLimit|Association(Time|Resource)Limit"
    r"|QOSUsageThreshold|Reservation(Deleted|Invalid)|SystemFailure"
    r"|(Assoc|QOS)Max\w+Per(Job|Node)(Limit)?|QOSMin\w+"
    r"|(Assoc|QOS)Grp((?!Run)\w)+Minutes(Limit)?|(Assoc|QOS)GrpWallLimit"  # a budget that is used up
)


def standing(raw: str, reason: str = "", exit_code: int | None = None, signal: int = 0) -> Standing:
    """The gateway's view of a state word as squeue or sacct prints it, e.g. ``CANCELLED by 20001``.

    An unknown word counts as running: then nobody repeats the job or throws its files away.
    """
    word, _, rest = raw.partition(" ")
    word = word.rstrip("+")
    if word == "COMPLETED":
        return Standing(BatchState.FINISHED)
    if word == "FAILED":
        return Standing(BatchState.FAILED, _failure(reason, exit_code, signal))
    if word == "CANCELLED":
        uid = re.search(r"\d+", rest)
        return Standing(BatchState.KILLED, Cause.CANCELLED, cancelled_by=int(uid[0]) if uid else None)
    if word in _ENDED_BY_LIMIT:
        return Standing(BatchState.FAILED, _ENDED_BY_LIMIT[word])
    if word in _ENDED_BY_SITE:
        return Standing(BatchState.FAILED, Cause.SITE, may_still_run=word == "NODE_FAIL")
    state = _LIVE.get(word, BatchState.RUNNING)
    if state is BatchState.QUEUED:
        return _waiting(reason)
    return Standing(state)


def _waiting(reason: str) -> Standing:
    if _HELD_REASONS.fullmatch(reason):
        return Standing(BatchState.HELD)
    return Standing(BatchState.QUEUED, stuck=_STUCK_REASONS.fullmatch(reason) is not None)


def _failure(reason: str, exit_code: int | None, signal: int) -> Cause:
    if signal == CANNOT_START or reason == "BadConstraints":
        return Cause.START
    return Cause.SIGNAL if signal else Cause.EXIT
