"""The engine when clients leave in the middle, come all at once, or are banned on the way.

Engine and journal are real. The jobs wait for an input, so no batch system is asked; identity is an object
that signs whatever comes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from edged.accounts.api import Entry, Kind, OpenFile
from edged.errors import Busy, EdgeError, NotFound
from services.jobs import journal
from services.jobs.model import Gpus, Job, Resources, State
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


@pytest.mark.parametrize(
    "written", [b'{"gpus": ' + b"9" * 400 + b', "seconds": 1.0, "busy": 1.0}', b"\xff", b"[" * 4000]
)
async def test_no_job_ends_the_engine_by_what_it_wrote(tmp_path: Path, written: bytes) -> None:
    """What its GPU sampler left, which lies in the job's own directory."""
    queue = {"name": "gpu", "gpus": [{"kind": "h200", "per_node": 4}]}
    subject = Subject(tmp_path, queue=[queue])
    subject.uploads.own["gpus"] = written
    asked = msgspec.structs.replace(WAITING, resources=Resources(gpus=Gpus(count=1)))
    async with subject.running() as engine:
        job = await subject.accept(description=asked)
        await engine.registry.move(job, State.FAILED)

        async def accounted() -> bool:
            return bool(await subject.store.read(lambda c: journal.accounted(c, [job.id])))

        await until_async(accounted, "its usage", 10)
        assert (await subject.accept(description=msgspec.structs.replace(asked, key="next"))).id != job.id


async def test_a_file_that_cannot_be_read_is_an_expected_error(tmp_path: Path) -> None:
    """A file server's fault with one job's file; raised in the background it must not end the engine."""
    entry = Entry("f", Kind.FILE, 0, 0, 0, 0, 0, 0o600, 0, 0, 1)
    with pytest.raises(EdgeError):
        await OpenFile(os.open(tmp_path, os.O_RDONLY), entry).read(1, 0)
