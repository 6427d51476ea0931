"""Limits, ranges, routes, merged metrics and log lines: pure parts of the HTTP edge."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import metrics
from edged.errors import RangeNotSatisfiable
from edged.http.fd import Span, requested
from edged.http.limits import Connections, Failures, source_of
from edged.logs import JsonFormatter
from services.jobs.logs import last_lines


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-0", Span(0, 1)),
        ("bytes=5-", Span(5, 10)),
        ("bytes=-3", Span(7, 10)),
        ("bytes=-30", Span(0, 10)),
        ("bytes=8-99", Span(8, 10)),
        ("bytes=0-1,3-4", None),
        ("bytes=4-2", None),
        ("bytes=" + "9" * 5000 + "-", None),  # Python reads no integer of over 4300 digits
        ("bytes=0-" + "9" * 5000, None),
        ("bytes=\u0661-\u0662", None),  # and takes digits of any script
        ("bytes=-", None),
        ("lines=0-1", None),
    ],
)
def test_ranges(header: str | None, span: Span | None) -> None:
    assert requested(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=-0"])
def test_ranges_past_the_end(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        requested(header, 10)


def test_connections_are_limited_per_source_and_in_all() -> None:
    held = Connections(per_source=2, in_all=3)
    assert [held.take("a"), held.take("a"), held.take("a"), held.take("b"), held.take("c")] == [
        True, True, False, True, False,
    ]  # fmt: skip
    held.give("a")
    assert held.take("c")


def test_failures_slide_over_a_minute() -> None:
    failures = Failures(per_minute=3)
    for _ in range(3):
        failures.failed("a", 10.0)
    assert failures.blocked("a", 11.0)
    assert not failures.blocked("b", 11.0)
    assert failures.blocked("a", 60.0)
    assert not failures.blocked("a", 90.0)
    assert not failures.blocked("a", 300.0)


def test_an_ipv6_source_is_its_network() -> None:
    assert source_of("2001:db8::1") == source_of("2001:db8::2")
    assert source_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert source_of("fe80::1%eth0") == source_of("fe80::2")


def test_merged_metrics_add_up() -> None:
    page = b'# HELP edged_x_total X "q".\n# TYPE edged_x_total counter\nedged_x_total{a="1\\n2"} 2.0\n'
    merged = metrics.merge([page, page]).decode()
    assert 'edged_x_total{a="1\\n2"} 4.0' in merged
    assert merged.count("# TYPE edged_x_total counter") == 1


def test_gauges_of_several_workers_are_told_once_or_added_as_they_are_marked() -> None:
    space = metrics.gauge("test_space_bytes", "Told by all.", ("export",), across=metrics.Across.LARGEST)
    heard = metrics.gauge("test_heard", "All must.", across=metrics.Across.LEAST)
    held = metrics.gauge("test_held", "Each its own.")
    pages = []
    for connected in (1, 0):
        space.labels("/cms").set(100)
        heard.set(connected)
        held.set(3)
        pages.append(metrics.exposition())
    merged = metrics.merge(pages).decode()
    assert 'edged_test_space_bytes{export="/cms"} 100.0' in merged
    assert "edged_test_heard 0.0" in merged
    assert "edged_test_held 6.0" in merged


@given(st.text())
def test_no_value_forges_a_log_line(text: str) -> None:
    record = logging.LogRecord("edged", logging.INFO, "f", 1, "event %s", (text,), None)
    record.path = text
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["logger"] == "edged"


@given(st.lists(st.binary().map(lambda b: b.replace(b"\n", b""))), st.integers(1, 5))
def test_the_last_lines(lines: list[bytes], count: int) -> None:
    data = b"".join(line + b"\n" for line in lines)
    assert last_lines(data, count) == b"".join(line + b"\n" for line in lines[-count:])
