"""Range headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.ranges import MAX_RANGES, Multipart, Span, Unsatisfiable, parse


@pytest.mark.parametrize(
    ("header", "spans"),
    [
        ("bytes=0-9", [(0, 10)]),
        ("bytes=90-", [(90, 100)]),
        ("bytes=-5", [(95, 100)]),
        ("bytes=-500", [(0, 100)]),
        ("bytes=0-999", [(0, 100)]),
        ("bytes=0-0, 99-99", [(0, 1), (99, 100)]),
        ("bytes=200-300,5-6", [(5, 7)]),
        ("Bytes = 1-2", [(1, 3)]),
        ("bytes=1-2,", [(1, 3)]),
    ],
)
def test_spans(header: str, spans: list[tuple[int, int]]) -> None:
    assert parse(header, 100) == [Span(*s) for s in spans]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "items=0-1",
        "bytes=a-b",
        "bytes=5-2",
        "bytes=-",
        "bytes=0-1;2",
        "bytes=" + chr(0x661) + "-" + chr(0x662),
        "bytes=0-,0-,0-",
        "bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)),
        "bytes=0-" + "9" * 60,
    ],
)
def test_ignored(header: str) -> None:
    assert parse(header, 100) is None


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=100-", 100), ("bytes=0-", 0), ("bytes=-0", 5), ("bytes=-5", 0)]
)
def test_unsatisfiable(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        parse(header, size)


@given(st.text(max_size=60), st.integers(0, 1 << 40))
def test_whatever_is_asked_stays_within_the_file(text: str, size: int) -> None:
    try:
        spans = parse("bytes=" + text, size)
    except Unsatisfiable:
        return
    assert spans is None or all(0 <= s.start < s.stop <= size for s in spans)


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 50)), min_size=2, max_size=20))
def test_multipart_announces_its_true_length(raw: list[tuple[int, int]]) -> None:
    spans = [Span(a, a + n) for a, n in raw]
    multipart = Multipart("b", 2000, spans)
    sent = sum(len(head) + (span.stop - span.start if span else 0) for head, span in multipart.pieces())
    assert multipart.length() == sent
    assert [span for _, span in multipart.pieces() if span] == spans
