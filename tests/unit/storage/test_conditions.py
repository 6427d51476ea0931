"""If-Match and its relatives."""

from __future__ import annotations

import pytest

from edged.accounts.api import Entry, Kind
from services.storage.conditions import Outcome, etag, evaluate, range_still_valid, seconds, tags

ENTRY = Entry("f", Kind.FILE, 10, 1_000_000_000_500_000_000, 0, 7, 1, 0o644, 1, 1, 1)
TAG = etag(ENTRY)
THEN, LATER = "Sun, 09 Sep 2001 01:46:40 GMT", "Mon, 10 Sep 2001 01:46:40 GMT"
EARLIER = "Sat, 08 Sep 2001 01:46:40 GMT"
GO, NOT, FAIL = Outcome.GO_ON, Outcome.NOT_MODIFIED, Outcome.FAILED


@pytest.mark.parametrize(
    ("method", "headers", "there", "outcome"),
    [
        ("GET", {"If-None-Match": TAG}, True, NOT),
        ("GET", {"If-None-Match": f"W/{TAG}"}, True, NOT),
        ("GET", {"If-None-Match": '"x", ' + TAG}, True, NOT),
        ("GET", {"If-None-Match": '"x"'}, True, GO),
        ("PUT", {"If-None-Match": "*"}, True, FAIL),
        ("PUT", {"If-None-Match": "*"}, False, GO),
        ("PUT", {"If-Match": TAG}, True, GO),
        ("PUT", {"If-Match": f"W/{TAG}"}, True, FAIL),
        ("PUT", {"If-Match": "*"}, False, FAIL),
        ("PUT", {"If-Match": '"x"'}, True, FAIL),
        ("GET", {"If-Modified-Since": THEN}, True, NOT),
        ("GET", {"If-Modified-Since": EARLIER}, True, GO),
        ("GET", {"If-Modified-Since": "rubbish"}, True, GO),
        ("PUT", {"If-Modified-Since": LATER}, True, GO),
        ("GET", {"If-None-Match": '"x"', "If-Modified-Since": LATER}, True, GO),
        ("PUT", {"If-Unmodified-Since": EARLIER}, True, FAIL),
        ("PUT", {"If-Unmodified-Since": THEN}, True, GO),
        ("PUT", {"If-Match": TAG, "If-Unmodified-Since": EARLIER}, True, GO),
    ],
)
def test_table(method: str, headers: dict[str, str], there: bool, outcome: Outcome) -> None:
    assert evaluate(method, headers, ENTRY if there else None) is outcome


def test_if_range() -> None:
    assert range_still_valid(None, ENTRY, 0)
    assert range_still_valid(TAG, ENTRY, 0)
    assert not range_still_valid("W/" + TAG, ENTRY, 0)
    assert range_still_valid(THEN, ENTRY, 1_000_000_100)
    assert not range_still_valid(THEN, ENTRY, 1_000_000_010)  # too fresh for a date to be exact
    assert not range_still_valid(LATER, ENTRY, 2e9)


def test_parsing() -> None:
    assert tags("*") is None
    assert tags('"a" , W/"b"') == [(False, "a"), (True, "b")]
    assert tags("nonsense") == []
    assert seconds("Sunday, 06-Nov-94 08:49:37 GMT") == 784111777
    assert seconds("x") is None
