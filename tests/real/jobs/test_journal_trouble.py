"""The journal cannot be written for a while: what was told stays true, nothing is lost and nothing runs twice.

SQLite itself says that the disk is full. The engine and its journal are real, the batch system is a dictionary.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from edged.errors import Conflict, NoSpace, Unavailable
from services.jobs import journal
from services.jobs.model import Description, Job, State
from tests.support.engine import ALICE, WAITING, Subject
from tests.support.waiting import until_async

AT_ONCE = Description(executable="true")
CONTENT = cast(AsyncIterator[bytes], None)
PERIODS: dict[str, Any] = {"poll_s": 0.1, "settle_s": 1.0, "client_deadline_s": 1.0}


async def _told(job: Job, state: State) -> None:
    async def there() -> bool:
        return job.state is state

    await until_async(there, f"the job is {state}", 20)


async def _kept(subject: Subject, job: Job, state: State) -> None:
    async def there() -> bool:
        kept = await subject.journalled(job)
        return kept is not None and kept.state is state

    await until_async(there, f"the journal says {state}", 20)


async def test_a_job_that_runs_is_not_said_to_have_failed(tmp_path: Path) -> None:
    """The disk fills between the submission and its acknowledgement."""
    subject = Subject(tmp_path, **PERIODS)
    async with subject.running():
        subject.queue.answers.clear()
        job = await subject.accept(description=AT_ONCE)
        await _kept(subject, job, State.SUBMITTING)
        async with subject.full_disk():
            subject.queue.answers.set()
            await _told(job, State.QUEUED)
            await _kept(subject, job, State.SUBMITTING)
        await _kept(subject, job, State.QUEUED)
    assert subject.queue.submissions == [job.id]


async def test_attempts_that_were_none_do_not_end_a_job(tmp_path: Path) -> None:
    """Before each submission the journal must take it: while it cannot, the job waits and no attempt counts."""
    subject = Subject(tmp_path, **PERIODS)
    async with subject.running() as engine:
        job = await subject.accept()
        job.missing = ()
        async with subject.full_disk():
            engine._pipeline.push(job)

            async def refused() -> bool:
                return "journal" in job.reason

            await until_async(refused, "the journal's refusal", 20)
            assert (job.state, job.attempt, subject.queue.submissions) == (State.ACCEPTED, 0, [])
        await _told(job, State.QUEUED)
        assert job.attempt == 1


async def test_an_end_that_was_told_is_written_when_there_is_room(tmp_path: Path) -> None:
    subject = Subject(tmp_path, **PERIODS)
    async with subject.running() as engine:
        job = await subject.accept()
        async with subject.full_disk():
            with pytest.raises(Unavailable):
                await engine.cancel(job)
            await _told(job, State.KILLED)
            await _kept(subject, job, State.ACCEPTED)
        await _kept(subject, job, State.KILLED)


async def test_what_was_used_is_accounted_when_there_is_room(tmp_path: Path) -> None:
    """And after a restart, where a kill came between a job's end and its usage."""
    subject = Subject(tmp_path, **PERIODS)
    async with subject.running() as engine:
        job = await subject.accept()
        other = await subject.accept(description=msgspec.structs.replace(WAITING, key="other"))
        async with subject.full_disk():
            with pytest.raises(Unavailable):
                await engine.registry.move(job, State.FAILED)
        await _kept(subject, job, State.FAILED)
        await _accounted(subject, job)
        await engine.registry.move(other, State.FAILED)
        await _accounted(subject, other)
        await subject.store.write(lambda c: c.execute(journal.USAGE.delete()) and None)
    after = Subject(tmp_path, **PERIODS)
    async with after.running():
        await _accounted(after, job)
        await _accounted(after, other)


async def _accounted(subject: Subject, job: Job) -> None:
    async def there() -> bool:
        return bool(await subject.store.read(lambda c: journal.accounted(c, [job.id])))

    await until_async(there, "its usage", 20)


async def test_a_cancel_that_failed_may_be_repeated(tmp_path: Path) -> None:
    """The second one must not be told that all is done."""
    subject = Subject(tmp_path, **PERIODS)
    async with subject.running() as engine:
        job = await subject.accept(description=AT_ONCE)
        await _told(job, State.QUEUED)
        subject.queue.jobs.clear()  # no sweep tells its end
        async with subject.full_disk():
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await engine.cancel(job)
        await engine.cancel(job)
        kept = await subject.journalled(job)
        assert kept is not None
        assert kept.cancel == "owner"


async def test_an_input_that_was_refused_may_be_sent_again(tmp_path: Path) -> None:
    subject = Subject(tmp_path, **PERIODS)
    async with subject.running() as engine:
        job = await subject.accept()
        async with subject.full_disk():
            with pytest.raises(Unavailable):
                await engine.put_input(job, "data", CONTENT)
        await engine.put_input(job, "data", CONTENT)
        await _told(job, State.QUEUED)


async def test_what_was_refused_is_not_there_after_a_restart(tmp_path: Path) -> None:
    """As where a connection is lost in the commit: it may have taken place, and nobody was promised it."""
    subject = Subject(tmp_path, **PERIODS)
    async with subject.running() as engine:
        job = await subject.accept()
        del engine.registry._jobs[job.id]
        async with subject.full_disk():
            engine.registry.disown([job.id])
            with pytest.raises(NoSpace):
                await engine.registry.write_again()

        async def gone() -> bool:
            return await subject.journalled(job) is None

        await until_async(gone, "its row is removed", 20)


async def test_a_job_is_not_removed_while_it_begins_again(tmp_path: Path) -> None:
    subject = Subject(tmp_path, **PERIODS)
    async with subject.running() as engine:
        job = await subject.accept()
        job.reruns = 1
        await engine.registry.move(job, State.FAILED)
        with subject.slow_disk():
            removed = asyncio.ensure_future(engine.clean(job))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            again = asyncio.ensure_future(engine.restart(ALICE, job))
        with pytest.raises(Conflict):
            await again
        await removed
        assert engine.registry.get(job.id) is None
        assert job.state is State.FAILED


async def test_who_may_not_look_for_a_job_does_not_know_that_it_failed(tmp_path: Path) -> None:
    """After a kill in mid-attempt; an account that is off the list for a while, a key not read yet."""
    subject = Subject(tmp_path, **PERIODS)
    async with subject.running():
        subject.queue.answers.clear()
        job = await subject.accept(description=AT_ONCE)
        await _kept(subject, job, State.SUBMITTING)
    subject.queue.forbidden = True
    after = Subject(tmp_path, there=subject.queue, **PERIODS)
    async with after.running() as engine:
        found = engine.registry.get(job.id)
        assert found is not None

        async def refused_twice() -> bool:
            return engine._pipeline._delays.get(job.id, 0) >= 2

        await until_async(refused_twice, "two look-ups", 20)
        assert found.state is State.SUBMITTING
        subject.queue.forbidden = False
        await _told(found, State.QUEUED)
    assert subject.queue.submissions == [job.id]
