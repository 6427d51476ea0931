"""Whose turn it is."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from edged.http.turns import Turns


async def test_sources_take_turns_and_nobody_waits_behind_a_flood() -> None:
    turns, order = Turns(), list[str]()

    async def step(source: str, name: str) -> None:
        await turns.turn(source)
        order.append(name)

    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(step("flood", f"f{number}"))
        for source in ("one", "two"):
            tasks.create_task(step(source, source))
    assert order == ["f0", "one", "two", "f1", "f2", "f3", "f4"]


async def test_one_step_a_round_of_the_loop() -> None:
    turns, done, rounds = Turns(), 0, list[int]()

    async def step() -> None:
        nonlocal done
        await turns.turn("flood")
        done += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(step())
        while done < 20:
            rounds.append(done)
            await asyncio.sleep(0)
    assert max(after - before for before, after in itertools.pairwise(rounds)) == 1


async def test_who_gives_up_holds_nobody_up() -> None:
    turns = Turns()
    waiting = [asyncio.ensure_future(turns.turn("flood")) for _ in range(3)]
    await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    async with asyncio.timeout(5):
        await turns.turn("one")
        await turns.turn("flood")
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
