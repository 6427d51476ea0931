"""Frames in any pieces, and what the messages add up to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import Unavailable
from edged.identity import feed
from edged.identity.feed import BanLifted, Banned, Begin, Frames, Heartbeat, JobEnded, Loaded, Revocations
from edged.identity.grants import Ban
from edged.identity.remembered import Remembered
from edged.identity.words import IssuerUrl, JobId, Principal, VoName

ALICE = Principal(issuer=IssuerUrl("i"), subject="alice", vo=VoName("cms"))
MESSAGES: list[feed.AnyMessage] = [
    Begin(1.0),
    Banned(Ban(id="b", issuer="i", subject="alice")),
    Loaded(2.0),
    JobEnded(JobId("j")),
    BanLifted("b"),
    Heartbeat(3.0),
]


@given(st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=40))
def test_frames_come_in_any_pieces(sizes: list[int]) -> None:
    data = b"".join(feed.frame([message]) for message in MESSAGES)
    frames, found, at = Frames(), list[feed.AnyMessage](), 0
    for size in [*sizes, len(data)]:
        found += frames.feed(data[at : at + size])
        at += size
    assert found == MESSAGES


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\1x", b"\0\0\0\2\x91\xc0"])
def test_what_is_no_feed_is_refused(data: bytes) -> None:
    with pytest.raises(Unavailable):
        Frames().feed(data)


def test_nothing_may_be_honoured_before_the_state_is_complete() -> None:
    state = Revocations()
    assert not state.usable(0.0)
    for message in MESSAGES[:2]:
        state.apply(message)
        assert not state.usable(1.0)
    state.apply(Loaded(2.0))
    assert state.usable(2.9)
    assert not state.usable(3.1)
    assert state.ban_on(ALICE, 0.0) is not None
    state.apply(BanLifted("b"))
    assert state.ban_on(ALICE, 0.0) is None
    state.apply(Begin(3.0))
    assert not state.usable(3.0)


def test_a_ban_ends_by_itself() -> None:
    state = Revocations()
    state.apply(Banned(Ban(id="b", issuer="i", subject="alice", expires_at=100.0)))
    assert state.ban_on(ALICE, 99.0) is not None
    assert state.ban_on(ALICE, 100.0) is None


def test_remembered_is_bounded_and_ends() -> None:
    held: Remembered[int] = Remembered(16)
    for number in range(100):
        held.put(bytes([number]), number, ends=10.0)
    assert len(held) <= 16
    assert held.get(bytes([99]), now=9.9) == 99
    assert held.get(bytes([99]), now=10.0) is None
    assert held.get(bytes([0]), now=0.0) is None
    held.drop(lambda number: number % 2 == 0)
    assert all(held.get(bytes([n]), 0.0) is None for n in range(0, 100, 2))
