"""Asking batch systems for their state: once for many callers, also when they do not answer."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from edged.errors import Unavailable
from edged.identity.words import AccountName
from services.jobs.batch.protocol import BatchSystem, SiteState
from services.jobs.sites import FRESH_S, Sites

CMS, ATLAS = AccountName("cmsprd"), AccountName("atlprd")

STATE = SiteState(taken_at=0.0, cluster="c", version="23.11")


class Batch:
    """Counts who asks; answers when told to."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answers = asyncio.Event()
        self.dead = False

    async def site(self, grant: bytes) -> SiteState:
        self.asked.append(grant)
        await self.answers.wait()
        if self.dead:
            raise Unavailable("slurmctld does not answer")
        return STATE


async def _standing(account: AccountName) -> bytes:
    return account.encode()


async def test_many_callers_are_one_question_for_each_account() -> None:
    batch, now = Batch(), [0.0]
    sites = Sites({"slurm": cast(BatchSystem, batch)}, _standing, lambda: now[0])
    async with asyncio.TaskGroup() as callers:
        for _ in range(50):
            callers.create_task(sites.of(CMS))
            callers.create_task(sites.of(ATLAS))
        await asyncio.sleep(0)
        batch.answers.set()
    assert sorted(batch.asked) == [b"atlprd", b"cmsprd"]
    now[0] = FRESH_S
    assert await sites.of(CMS) == {"slurm": STATE}
    assert len(batch.asked) == 3


async def test_a_silent_batch_system_is_not_asked_by_everyone_in_turn() -> None:
    batch, now = Batch(), [0.0]
    batch.dead = True
    batch.answers.set()
    sites = Sites({"slurm": cast(BatchSystem, batch)}, _standing, lambda: now[0])
    for _ in range(5):
        with pytest.raises(Unavailable):
            await sites.of(CMS)
    assert len(batch.asked) == 1
    batch.dead, now[0] = False, FRESH_S
    assert await sites.of(CMS)
