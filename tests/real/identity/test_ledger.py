"""The ledger over many jobs: what an ended one leaves in memory, and that nothing brings it back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edged.errors import Unauthenticated
from edged.identity.words import AccountName, IssuerUrl, JobClass, JobFacts, JobId, Principal, VoName
from edged.state import Store
from services.identity import ledger
from services.identity.ledger import Ledger
from tests.support.memory import left_behind

GROUPS = tuple(f"/cms/group{number}" for number in range(10))


class Clock:
    """Stands still until it is moved. Unix seconds."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def kept(directory: Path, clock: Clock) -> AsyncIterator[Ledger]:
    """A ledger on the database of ``directory``."""
    store = Store.local("identity", directory / "identity.sqlite", ledger.MIGRATIONS)
    store.prepare()
    book = Ledger(store, clock)
    async with asyncio.TaskGroup() as tasks, book.running(tasks):
        yield book


def facts(name: str) -> JobFacts:
    """A job's; each has a principal of its own, as each comes out of a grant of its own."""
    owner = Principal(
        issuer=IssuerUrl("https://issuer.test/"), subject=f"s-{name}", vo=VoName("cms"), groups=GROUPS
    )
    return JobFacts(
        job=JobId(name),
        account=AccountName("cmsprd"),
        vo=VoName("cms"),
        job_class=JobClass.PILOT,
        principal=owner,
    )


async def test_an_ended_job_leaves_its_name_and_no_more(tmp_path: Path) -> None:
    clock, numbers = Clock(), itertools.count()
    async with kept(tmp_path, clock) as book:

        async def one() -> None:
            name = f"job-{next(numbers):022d}"
            await book.issue(facts(name), clock.now + 86400)
            await book.report(JobId(name), ("node1",), ended=False)
            await book.report(JobId(name), (), ended=True)

        async def many(count: int) -> None:
            for _ in range(count // 50):
                await asyncio.gather(*(one() for _ in range(50)))

        assert await left_behind(many, warm=200, count=1000) < 300
        clock.now += ledger.ENDED_S + 1
        await one()
        assert len(book.ended()) == 1  # an hour later even the name is gone


async def test_where_a_job_ran_told_late_does_not_revive_it(tmp_path: Path) -> None:
    clock = Clock()
    async with kept(tmp_path, clock) as book:
        token = await book.issue(facts("j1"), clock.now + 86400)
        await asyncio.gather(
            book.report(JobId("j1"), (), ended=True), book.report(JobId("j1"), ("node1",), ended=False)
        )
        with pytest.raises(Unauthenticated):
            book.facts(JobId("j1"), token)
    async with kept(tmp_path, clock) as book:
        with pytest.raises(Unauthenticated):
            book.facts(JobId("j1"), token)
        assert book.ended() == ("j1",)


async def test_a_job_that_begins_again_has_a_token_again(tmp_path: Path) -> None:
    clock = Clock()
    async with kept(tmp_path, clock) as book:
        await book.issue(facts("j1"), clock.now + 86400)
        await book.report(JobId("j1"), (), ended=True)
        token = await book.issue(facts("j1"), clock.now + 86400)
    async with kept(tmp_path, clock) as book:
        assert book.facts(JobId("j1"), token).account == "cmsprd"
        assert book.ended() == ()
