"""Locks and the If header."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest
from services.storage.faults import Locked
from services.storage.lockfile import Locks
from services.storage.locks import Lock, LockTable, holds, parse_if, parse_timeout, tokens_in


def lock(token: str, key: str, *, deep: bool = True, exclusive: bool = True, holder: str = "a") -> Lock:
    return Lock(token, key, key, deep, exclusive, "", holder, 60.0, time.time() + 60)


def test_exclusive_locks_exclude() -> None:
    table = LockTable([lock("1", "/c/d")])
    for rival in (
        lock("2", "/c/d"),
        lock("2", "/c/d/e"),
        lock("2", "/c"),
        lock("2", "/c/d", exclusive=False),
    ):
        with pytest.raises(Locked):
            table.add(rival)
    table.add(lock("2", "/c/dd"))
    table.add(lock("3", "/c", deep=False))


def test_shared_locks_share() -> None:
    table = LockTable([lock("1", "/c/d", exclusive=False)])
    table.add(lock("2", "/c/d", exclusive=False, holder="b"))
    table.check("/c/d", frozenset({"2"}), "b")
    with pytest.raises(Locked):
        table.check("/c/d", frozenset(), "b")


def test_a_token_counts_only_for_its_holder() -> None:
    table = LockTable([lock("1", "/c/d", holder="a")])
    table.check("/c/d/e", frozenset({"1"}), "a")
    with pytest.raises(Locked):
        table.check("/c/d/e", frozenset({"1"}), "b")


def test_members_of_a_locked_collection() -> None:
    table = LockTable([lock("1", "/c", deep=False)])
    table.check("/c/f", frozenset(), "a")  # its contents are free
    with pytest.raises(Locked):
        table.check("/c/f", frozenset(), "a", member=True)  # its names are not


def test_trees_with_locks_inside() -> None:
    table = LockTable([lock("1", "/c/d/e")])
    table.check("/c/d", frozenset(), "a")
    with pytest.raises(Locked):
        table.check("/c/d", frozenset(), "a", deep=True)
    table.forget_tree("/c")
    assert len(table) == 0


@pytest.mark.parametrize(
    ("header", "count"),
    [
        ("(<urn:x>)", 1),
        ('(<urn:x> ["etag"])(Not <DAV:no-lock>)', 2),
        ('<http://h/a> (<urn:x>) <http://h/b> (["W"])', 2),
        ('([W/"e"])', 1),
    ],
)
def test_if_headers(header: str, count: int) -> None:
    assert len(parse_if(header)) == count


@pytest.mark.parametrize(
    "header", ["", "x", "(", ")", "()", "(<a>", "<a>", "(Not)", "(Not Not <a>)", "(<a> ())"]
)
def test_malformed_if_headers(header: str) -> None:
    with pytest.raises(BadRequest):
        parse_if(header)


@given(st.text(max_size=80))
def test_no_if_header_breaks_the_parser(text: str) -> None:
    try:
        parse_if(text)
    except BadRequest:
        return


def test_if_is_an_or_of_ands() -> None:
    table = LockTable([lock("urn:1", "/c/f")])
    etags = {"/c/f": '"e"'}

    def true(header: str) -> bool:
        return holds(parse_if(header), "/c/f", lambda tag: tag, etags.get, table)

    assert true('(<urn:1> ["e"])')
    assert not true('(<urn:1> ["x"])')
    assert true('(<urn:2>)(["e"])')
    assert true("(Not <DAV:no-lock>)")
    assert not true("</c/other> (<urn:1>)")
    assert tokens_in(parse_if('(Not <urn:1> ["e"])')) == {"urn:1"}


def test_timeouts() -> None:
    assert parse_timeout("Second-100", 3600) == 100
    assert parse_timeout("Infinite, Second-4100000000", 3600) == 3600
    assert parse_timeout(None, 3600) == parse_timeout("rubbish", 3600) == 3600


async def test_locks_are_shared_between_processes_and_outlive_them(tmp_path: Path) -> None:
    one = Locks(tmp_path / "locks", limit=10, longest_s=60)
    two = Locks(tmp_path / "locks", limit=10, longest_s=60)
    assert not two.any()
    async with one.changing() as table:
        table.add(lock("1", "/c/d"))
    assert two.any()
    with pytest.raises(Locked):
        (await two.now()).check("/c/d", frozenset(), "a")
    one.close()
    async with two.changing() as table:
        with pytest.raises(Locked):
            table.add(lock("2", "/c/d"))
        table.remove("1")
    three = Locks(tmp_path / "locks", limit=10, longest_s=60)
    assert not three.any()
    two.close()
    three.close()
