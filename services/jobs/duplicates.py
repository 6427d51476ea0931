"""A job that its batch system started twice: a controller that lost its state does so, after a crash of its host.

The second copy finds the marker of the first and exits at once, and its exit code is all that the batch system
then knows of the job. What became of the first copy is in the outcome that it leaves in the session directory.
"""

from __future__ import annotations

import msgspec

from services.jobs.batch.protocol import BatchJob, BatchState, Cause
from services.jobs.batch.script import EXIT_DUPLICATE, Outcome

UNKNOWN = "the batch system started it a second time; the first copy may still run"


def suspected(answer: BatchJob) -> bool:
    """Whether a second copy's end was taken for the job's; or the payload gave this exit code itself."""
    return answer.state is BatchState.FAILED and answer.exit_code == EXIT_DUPLICATE


def corrected(answer: BatchJob, outcome: Outcome | None) -> BatchJob:
    """The first copy's end; without an ``outcome`` it is unknown, and may still come."""
    if outcome is None:
        return msgspec.structs.replace(
            answer, cause=Cause.SITE, exit_code=None, may_still_run=True, reason=UNKNOWN
        )
    well = outcome.exit_code == 0
    return msgspec.structs.replace(
        answer,
        state=BatchState.FINISHED if well else BatchState.FAILED,
        cause=Cause.NONE if well else Cause.EXIT,
        exit_code=outcome.exit_code,
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        elapsed_s=outcome.ended_at - outcome.started_at,
    )
