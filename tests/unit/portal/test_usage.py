"""Sums, formats and spans of usage."""

from __future__ import annotations

import csv
import io
import json

import pytest

from edged.errors import BadRequest
from edged.usage import Usage, as_csv, as_json, as_table, last_days, size, span, summed

ROWS = [
    Usage(
        day="2026-01-01",
        vo="cms",
        jobs=2,
        finished=1,
        cpu_allocated_s=7200,
        cpu_measured_s=3600,
        cpu_used_s=1800,
    ),
    Usage(
        day="2026-01-02",
        vo="cms",
        jobs=1,
        finished=1,
        cpu_allocated_s=3600,
        gpu_allocated_s=7200,
        gpu_kind="h200",
    ),
    Usage(day="2026-01-02", vo="ska", bytes_in=10, bytes_out=1 << 30),
]


def test_sums_keep_what_was_not_measured_apart() -> None:
    cms, ska = summed(ROWS, ["vo"])
    assert (cms.vo, cms.jobs, cms.cpu_allocated_s, cms.gpu_allocated_s) == ("cms", 3, 10800, 7200)
    assert cms.cpu_efficiency == 0.5  # of the hour that was measured, not of all three
    assert cms.gpu_efficiency is None
    assert ska.cpu_used_s is None
    assert (ska.bytes_in, ska.bytes_out) == (10, 1 << 30)


def test_grouping_by_nothing_is_one_row() -> None:
    (everything,) = summed(ROWS, [])
    assert everything.jobs == 3


def test_formats_agree() -> None:
    rows = summed(ROWS, ["day", "vo"])
    read = list(csv.DictReader(io.StringIO(as_csv(rows, ["day", "vo"]))))
    told = json.loads(as_json(rows, ["day", "vo"]))
    assert [(r["day"], r["vo"], int(r["jobs"])) for r in read] == [
        (t["day"], t["vo"], t["jobs"]) for t in told
    ]
    assert read[0]["gpu_used_h"] == "" and told[0]["gpu_used_h"] is None
    table = as_table(rows, ["day", "vo"])
    assert "not measured" in table and "1.0 GiB" in table


def test_no_cell_is_a_formula() -> None:
    row = Usage(day="2026-01-01", vo="=HYPERLINK(1)")
    assert as_csv([row], ["vo"]).splitlines()[1].startswith("'=HYPERLINK")


BAD = [("yesterday", "2026-01-01"), ("2026-13-01", "2026-12-01"), ("2026-01-02", "2026-01-01")]


@pytest.mark.parametrize(("first", "last"), BAD)
def test_bad_spans(first: str, last: str) -> None:
    with pytest.raises(BadRequest):
        span(first, last)


def test_spans_are_whole_utc_days() -> None:
    found = last_days(2, now=86400 * 10 + 5)
    assert (found.first, found.last) == ("1970-01-10", "1970-01-11")
    assert found.ends - found.begins == 2 * 86400


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 50, "1.0 PiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
