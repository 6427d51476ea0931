"""What a job leaves behind in the engine once it is cleaned: nothing that grows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from services.jobs.batch.protocol import BatchJob, BatchRef, BatchState, Submission, Submitted
from services.jobs.model import Description, State
from tests.support.engine import Queue, Subject
from tests.support.memory import left_behind

ECHO = Description(executable="echo")
AT_ONCE = 25


class Instant(Queue):
    """Its jobs have ended by the first sweep, and it forgets them once they are accounted for."""

    async def submit(self, grant: bytes, submission: Submission) -> Submitted:
        submitted = await super().submit(grant, submission)
        queued = self.jobs[submission.name]
        self.jobs[submission.name] = msgspec.structs.replace(queued, state=BatchState.FINISHED, exit_code=0)
        self.submissions.clear()
        return submitted

    async def finals(self, _grant: bytes, refs: Sequence[BatchRef]) -> list[BatchJob]:
        return [ended for ref in refs if (ended := self.jobs.pop(ref.name, None)) is not None]


async def test_a_cleaned_job_leaves_nothing(tmp_path: Path) -> None:
    subject = Subject(tmp_path, there=Instant(), poll_s=0.05)
    subject.store.prepare()
    async with subject.running() as engine:

        async def one() -> None:
            made = await subject.accept(description=ECHO)
            while not made.state.final:
                await engine.wait(made, made.changed_at, 10)
            assert made.state is State.FINISHED, made
            await engine.clean(made)

        async def many(count: int) -> None:
            for _ in range(count // AT_ONCE):
                await asyncio.gather(*(one() for _ in range(AT_ONCE)))

        assert await left_behind(many, warm=100, count=500) < 150
