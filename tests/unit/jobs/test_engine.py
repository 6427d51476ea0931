"""The engine when clients leave in the middle, come all at once, or are banned on the way.

Engine and journal are real. The jobs wait for an input, so no batch system is asked; identity is an object
that signs whatever comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from edged.errors import Busy, NotFound
from services.jobs.model import Job, State
from tests.support.engine import AS_ATLAS, WAITING, Subject
from tests.support.waiting import until_async
from tests.unit.jobs.jobs import OWNER


async def _turns() -> None:
    """Everything that is ready to run has run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_leaves_while_a_job_is_written_down_finds_it_by_its_key(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    async with subject.running() as engine:
        with subject.slow_disk():
            leaving = asyncio.ensure_future(subject.accept())
            await _turns()
            leaving.cancel()
            await _turns()
        assert leaving.cancelled()

        async def again() -> Job | None:
            try:
                return await subject.accept()
            except Busy:
                return None

        found = await until_async(again, "the job of that key", 10)
        assert found is not None
        assert [job.id for job in engine.registry] == [found.id]


async def test_limits_hold_against_many_at_once(tmp_path: Path) -> None:
    subject = Subject(tmp_path, limit=[{"vo": "cms", "queued": 3}])
    others = [msgspec.structs.replace(WAITING, key=f"k{number}") for number in range(8)]
    async with subject.running() as engine:
        with subject.slow_disk():
            asked = [asyncio.ensure_future(subject.accept(description=one)) for one in others]
            await _turns()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(one, Job) for one in outcomes) == 3
        assert sum(isinstance(one, Busy) for one in outcomes) == 5
        for job in engine.registry:
            await engine.registry.move(job, State.FAILED)
        await subject.accept()


async def test_a_ban_reaches_a_job_on_its_way_into_the_journal(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    async with subject.running() as engine:
        with subject.slow_disk():
            coming = asyncio.ensure_future(subject.accept())
            await _turns()
            subject.identity.ban(lambda who: who.subject == OWNER.subject, False)
        job = await coming
        await until_async(lambda: _is(job, State.KILLED), "the banned job's end", 10)
        assert "ban" in job.reason
        assert len(engine.registry) == 1


async def _is(job: Job, state: State) -> bool:
    return job.state is state


async def test_who_leaves_while_cancelling_has_cancelled(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    async with subject.running() as engine:
        job = await subject.accept()
        with subject.slow_disk():
            leaving = asyncio.ensure_future(engine.cancel(job))
            await _turns()
            leaving.cancel()
            await _turns()
        await until_async(lambda: _is(job, State.KILLED), "the cancelled job's end", 10)


async def test_who_leaves_after_the_last_byte_of_an_input_has_brought_it(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    content = cast(AsyncIterator[bytes], None)
    async with subject.running() as engine:
        job = await subject.accept()
        with subject.slow_disk():
            leaving = asyncio.ensure_future(engine.put_input(job, "data", content))
            await _turns()
            leaving.cancel()
            await _turns()
        assert job.missing == ()
        await until_async(lambda: _begun(job), "the job's next step", 10)


async def _begun(job: Job) -> bool:
    return job.state is not State.ACCEPTED


async def test_a_key_is_of_one_person_in_one_role(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    async with subject.running():
        mine = await subject.accept()
        assert (await subject.accept()).id == mine.id
        assert (await subject.accept(AS_ATLAS)).id != mine.id


async def test_what_was_cleaned_meanwhile_is_not_found_and_harms_nobody(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    async with subject.running() as engine:
        job = await subject.accept()
        await engine.registry.move(job, State.FAILED)
        await engine.clean(job)
        with pytest.raises(NotFound):
            await engine.clean(job)
