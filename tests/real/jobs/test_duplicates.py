"""A batch system that starts a job twice ends it with the second copy's exit code: the first one's end is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.jobs import follower
from services.jobs.batch import script
from services.jobs.batch.script import EXIT_DUPLICATE
from services.jobs.model import Description, Job, State
from tests.support.engine import Subject
from tests.support.waiting import until_async

AT_ONCE = Description(executable="true")


async def _ended_twice(subject: Subject) -> Job:
    job = await subject.accept(description=AT_ONCE)

    async def queued() -> bool:
        return job.state is State.QUEUED

    await until_async(queued, "the job is queued", 20)
    subject.queue.end(job, EXIT_DUPLICATE)
    return job


@pytest.mark.parametrize(("code", "state"), [(0, State.FINISHED), (7, State.FAILED)])
async def test_the_first_copys_end_counts(tmp_path: Path, code: int, state: State) -> None:
    subject = Subject(tmp_path, poll_s=0.1)
    subject.uploads.own["outcome"] = f"exit={code}\nstarted=100\nended=160\nhost=c1\n".encode()
    async with subject.running():
        job = await _ended_twice(subject)

        async def over() -> bool:
            return job.state.final

        await until_async(over, "its end", 20)
        assert (job.state, job.exit_code, job.elapsed_s) == (state, code, 60.0)


async def test_while_the_first_copy_may_run_it_has_not_failed(tmp_path: Path) -> None:
    subject = Subject(tmp_path, poll_s=0.1)
    async with subject.running():
        job = await _ended_twice(subject)

        async def waits() -> bool:
            return job.state is State.FINISHING and "second time" in job.reason

        await until_async(waits, "it is waited for", 20)
        subject.uploads.own["outcome"] = b"exit=0\nstarted=100\nended=160\nhost=c1\n"

        async def finished() -> bool:
            return job.state is State.FINISHED

        await until_async(finished, "its end", follower.NODE_FAILURE_S)


@pytest.mark.parametrize(
    "written",
    [
        b"exit=" + b"9" * 400 + b"\nstarted=1\nended=2\nhost=c1\n",
        b"exit=0\nstarted=nan\nended=nan\nhost=c1\n",
        b"exit=0\nstarted=1\nended=inf\nhost=c1\n",
        b"exit=0\nstarted=1e300\nended=1e301\nhost=c1\n",
        b"exit=-1\nstarted=1\nended=2\nhost=c1\n",
        b"exit=0\nstarted=2\nended=1\nhost=c1\n",
    ],
)
def test_an_outcome_that_cannot_be_is_none(written: bytes) -> None:
    """The job could have written anything."""
    assert script.read_outcome(written) is None
