"""Ranges, the circuit breaker, the hot set and the geo answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache import ranges
from services.cache.cvmfs import ranks
from services.cache.files import open_file
from services.cache.residents import Hot, Resident, Residents
from services.cache.traffic import Traffic
from services.cache.upstream.breaker import Breaker


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"bytes=0-0", (0, 1)),
        (b"bytes=5-", (5, 10)),
        (b"bytes=-3", (7, 10)),
        (b"bytes=-30", (0, 10)),
        (b"bytes=2-99", (2, 10)),
        (b"bytes=5-2", None),
        (b"bytes=0-1,4-5", None),
        (b"lines=0-1", None),
        (b"bytes=-", None),
        (None, None),
    ],
)
def test_ranges(text: bytes | None, part: tuple[int, int] | None) -> None:
    assert ranges.wanted(text, 10) == part


@pytest.mark.parametrize("text", [b"bytes=10-", b"bytes=-0"])
def test_ranges_outside(text: bytes) -> None:
    with pytest.raises(ranges.Unsatisfiable):
        ranges.wanted(text, 10)


@given(st.binary(max_size=40), st.integers(0, 1000))
def test_a_range_lies_inside(text: bytes, size: int) -> None:
    try:
        part = ranges.wanted(b"bytes=" + text, size)
    except ranges.Unsatisfiable:
        return
    assert part is None or 0 <= part[0] < part[1] <= size


def test_the_breaker_opens_rests_longer_each_time_and_closes() -> None:
    breaker = Breaker(failures=2, rest_s=10)
    assert not breaker.failed(0)
    assert breaker.allows(0)
    assert breaker.failed(0)
    assert not breaker.allows(9)
    assert breaker.allows(10)
    breaker.failed(10)
    assert not breaker.allows(29)
    breaker.worked()
    assert breaker.allows(29)


def resident(key: str, size: int = 100) -> Resident:
    return Resident(key, b"", size, 0.0, float("inf"), body=bytes(size))


def test_the_hot_set_keeps_its_bound_and_what_is_used() -> None:
    hot = Residents(memory=5 * (100 + 1024), files=10)
    for number in range(5):
        hot.add(resident(str(number)))
    used = hot.get("0")
    assert used is not None
    used.used = True
    hot.remember(b"GET /1", Hot(resident("x"), Traffic("t"), b""))
    kept = hot.get("1")
    assert kept is not None
    hot.remember(b"GET /1", Hot(kept, Traffic("t"), b""))
    hot.add(resident("5"))
    assert hot.get("0") is not None
    assert hot.get("1") is None
    assert not hot.by_line
    assert hot.bytes <= 5 * 1124


def test_open_files_are_bounded_by_number_not_by_memory(tmp_path: Path) -> None:
    hot = Residents(memory=0, files=3)
    (tmp_path / "f").write_bytes(b"x")
    for number in range(5):
        file = open_file(tmp_path / "f")
        hot.add(Resident(str(number), b"", 1, 0.0, float("inf"), file=file))
    assert (len(hot), hot.open_files) == (3, 3)


def test_one_larger_than_everything_does_not_stay() -> None:
    hot = Residents(memory=1000, files=10)
    hot.add(resident("big", 5000))
    assert (len(hot), hot.bytes) == (0, 0)


def test_ranks_put_our_order_first_and_strangers_last() -> None:
    assert ranks(("c.org", "a.org:8000", "b.org"), ["a.org", "b.org"]) == b"2,3,1\n"
