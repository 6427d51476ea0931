"""A submission of which nobody knows whether it took effect: looked for until it was missed for long enough."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import cast

from edged.lifecycle import Background
from services.jobs.batch.protocol import BatchJob, BatchRef, BatchState, BatchSystem, Submission, Submitted
from services.jobs.model import Job, State, begin_again
from services.jobs.pipeline import Pipeline
from tests.support.engine import Queue, Subject
from tests.unit.jobs.jobs import job

SETTLE_S = 0.5


class Forgetful(Queue):
    """Knows a job only from the look after ``absent`` others on."""

    def __init__(self) -> None:
        super().__init__()
        self.absent = 0
        self.looks = 0
        self.submitted_after: list[int] = []  # looks

    async def find(self, _grant: bytes, job: str, _since: float) -> list[BatchJob]:
        self.looks += 1
        if self.looks <= self.absent:
            return []
        ref = BatchRef(self.name, str(self.looks), 0.0, job)
        return [BatchJob(ref=ref, state=BatchState.QUEUED, raw_state="PENDING")]

    async def submit(self, grant: bytes, submission: Submission) -> Submitted:
        self.submitted_after.append(self.looks)
        return await super().submit(grant, submission)


async def test_each_run_must_be_missed_for_itself(tmp_path: Path) -> None:
    subject, batch = Subject(tmp_path, settle_s=SETTLE_S), Forgetful()
    subject.store.prepare()
    async with asyncio.TaskGroup() as tasks, subject.store.running(tasks), Background() as work:
        pipeline = Pipeline(
            subject.engine.registry,
            subject.engine.config,
            batch_of=lambda _: cast(BatchSystem, batch),
            prepare=lambda one: asyncio.sleep(0, Submission(job=one.id)),
        )
        pipeline.start(work)
        lost = job("j1")
        subject.engine.registry.add(lost, b"grant")
        batch.absent = 1
        await _interrupted(pipeline, subject, lost)
        assert batch.looks == 2, "it was found at the second look"
        begin_again(lost)
        batch.looks, batch.absent = 0, 100
        await _interrupted(pipeline, subject, lost)
        assert batch.submitted_after[0] >= 2, (
            "one look is no proof, however long ago the run before was missed"
        )


async def _interrupted(pipeline: Pipeline, subject: Subject, lost: Job) -> None:
    """As after a crash in the middle of an attempt, long ago; returns when the batch system has the job."""
    lost.attempt_at = time.time() - 100
    await subject.engine.registry.move(lost, State.SUBMITTING)
    with subject.engine.registry.watch(lost.account) as changes:
        pipeline.push(lost)
        async with asyncio.timeout(20):
            while lost.state is not State.QUEUED:
                await changes.get()
