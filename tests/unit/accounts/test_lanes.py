"""Who waits for a place on an export, who is refused, and that no place is lost."""

from __future__ import annotations

import asyncio

import pytest

from edged.accounts import messages
from edged.accounts.lanes import HUNG_S, PATIENCE_S, PROBE_S, Lane
from edged.errors import Busy, Unavailable

STAT, LIST = messages.Stat, messages.List


async def _waiting(lane: Lane, kind: object, now: float) -> asyncio.Task[float]:
    task = asyncio.create_task(lane.enter(kind, now))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_the_next_one_gets_the_place_that_is_given_back() -> None:
    lane = Lane("cms", 1)
    await lane.enter(STAT, 0.0)
    first, second = await _waiting(lane, STAT, 0.1), await _waiting(lane, STAT, 0.2)
    lane.leave(STAT, 0.3)
    await first
    assert not second.done()
    lane.leave(STAT, 0.4)
    await second
    lane.leave(STAT, 0.5)
    await lane.enter(STAT, 0.6)


async def test_who_gives_up_waiting_takes_no_place_along() -> None:
    lane = Lane("cms", 1)
    await lane.enter(STAT, 0.0)
    early, late = await _waiting(lane, STAT, 0.1), await _waiting(lane, STAT, 0.2)
    early.cancel()
    await asyncio.sleep(0)
    lane.leave(STAT, 0.3)
    late.cancel()  # at the very moment the place came
    with pytest.raises(asyncio.CancelledError):
        await late
    await lane.enter(STAT, 0.4)


async def test_a_refusal_gives_no_place_away() -> None:
    lane = Lane("cms", 1)
    await lane.enter(LIST, 0.0)
    refused = await _waiting(lane, STAT, 0.1)
    lane.refuse_waiting(0.1 + PATIENCE_S + 1)
    refused.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refused
    with pytest.raises(Busy):
        waiting = await _waiting(lane, STAT, 71.0)
        lane.refuse_waiting(71.0 + PATIENCE_S + 1)
        await waiting


async def test_a_hung_file_system_is_probed_by_one_and_refuses_the_others() -> None:
    lane = Lane("cms", 3)
    await lane.enter(STAT, 0.0)
    now = HUNG_S + 1
    await lane.enter(STAT, now)  # the probe
    with pytest.raises(Unavailable, match="does not answer"):
        await lane.enter(STAT, now + PROBE_S / 2)
    assert lane.silent_s(now) == now
    lane.leave(STAT, now + 1)
    assert lane.silent_s(now + 1) == 0.0
    await lane.enter(STAT, now + 1)


async def test_a_long_listing_says_nothing_about_health() -> None:
    lane = Lane("cms", 2)
    await lane.enter(LIST, 0.0)
    assert lane.silent_s(1000.0) == 0.0
    await lane.enter(STAT, 1000.0)
