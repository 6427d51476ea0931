"""Who waits for whom: dependencies and arrays held back, queues that are full."""

from __future__ import annotations

from services.jobs.fullness import Fullness
from services.jobs.holding import Holding
from services.jobs.model import Job
from tests.unit.jobs.jobs import job

SOON, NOW, LATER = 100.0, 200.0, 300.0


def _ids(jobs: list[Job]) -> list[str]:
    return [one.id for one in jobs]


def test_an_end_releases_all_that_waited_for_it() -> None:
    first, second, third, other = job("a"), job("b"), job("c"), job("d")
    holding = Holding()
    holding.hold_after(second, first.id)
    holding.hold_after(third, first.id)
    assert holding.released_by(other) == []
    assert holding.released_by(first) == _ids([second, third])
    assert holding.released_by(first) == []


def test_an_end_in_an_array_releases_one_element_in_their_order() -> None:
    elements = [job(f"e{index}", array="family") for index in range(4)]
    holding = Holding()
    for waiting in elements[1:]:
        holding.hold_in_array(waiting)
    assert holding.released_by(job("x", array="another")) == []
    assert holding.released_by(elements[0]) == [elements[1].id]
    assert holding.released_by(elements[2]) == [elements[3].id], "it was cancelled while it waited"
    assert holding.released_by(elements[1]) == []


def test_who_was_told_full_asks_again_and_the_others_wait_behind() -> None:
    jobs = [job(f"j{index}") for index in range(4)]
    full = Fullness()
    full.said(jobs[1], LATER)
    assert not full.holds(job("z", queue="another"), NOW), "another queue is not concerned"
    assert all(full.holds(one, NOW) for one in (jobs[3], jobs[2], jobs[0]))
    assert full.room(job("x")) == jobs[0].id, "the oldest first"
    assert not full.holds(jobs[0], NOW)
    assert full.holds(jobs[2], NOW), "its turn has not come"
    assert full.room(jobs[0]) == jobs[1].id, "an end comes before its own timer"
    assert not full.holds(jobs[1], NOW)
    full.said(jobs[1], LATER)
    assert not full.holds(jobs[1], LATER), "its timer"
    assert full.room(jobs[1]) == jobs[2].id
    assert full.room(jobs[2]) == jobs[3].id
    assert full.room(jobs[3]) is None


def test_nobody_is_left_behind_when_the_one_that_asks_ends() -> None:
    asking, waiting, last = job("a"), job("b"), job("c")
    full = Fullness()
    full.said(asking, LATER)
    assert full.holds(waiting, NOW)
    assert full.holds(last, NOW)
    assert full.room(waiting) == asking.id, "it was cancelled while it waited"
    assert full.room(asking) == last.id
    assert full.room(last) is None
    assert not full.holds(job("d"), SOON), "nobody waits: the queue is open again"
