"""The page and its plots: escaped, accessible, honest about what was not measured."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from defusedxml import ElementTree

from edged.peers import Readiness, Ready
from edged.summary import JobCount, Partition
from edged.usage import Usage, day_of
from services.portal import page
from services.portal.audit import Answer, Decision
from services.portal.figures import Snapshot
from services.portal.html import Safe, tag
from services.portal.plots import Plot, bars, ceiling, palette
from services.portal.readings import Readings, hits
from services.portal.sessions import Session, Sessions

NOW = 1_770_000_000.0
EVIL = "<script>alert(1)</script>\"'&"
SESSION = Session(EVIL, "secret", 0.0)
VOID = {"meta", "link", "input", "br"}


class Checker(HTMLParser):
    """Elements balance, ids are unique, labels have their fields; counts scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.wanted: set[str] = set()
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                assert value not in self.ids
                self.ids.add(value or "")
            if key in ("for", "aria-labelledby"):
                self.wanted.add(value or "")
            assert not key.startswith("on") and key != "style"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def full() -> Snapshot:
    readings = Readings()
    for outcome, count in (("memory", 3), ("miss", 1)):
        readings.add(f'edged_cache_requests_total{{source="x",outcome="{outcome}"}} {count}\n')
    return Snapshot(
        at=NOW - 5,
        processes=[
            Readiness("jobs", "127.0.0.1:1", Ready(False, {"jobs": EVIL}, "1")),
            Readiness("cache", "127.0.0.1:2", None),
        ],
        jobs=[JobCount("cms", "gpu", "RUNNING", 4), JobCount("cms", "gpu", "QUEUED", 2)],
        partitions=[
            Partition(batch="slurm", name="gpu", up=True, cpus=8, cpus_free=2, gpus={"gpu:h200": (4, 1)})
        ],
        usage=[Usage(day=day_of(NOW), vo=EVIL, jobs=1, cpu_allocated_s=7200, gpu_allocated_s=3600)],
        readings=readings,
        drained=["*"],
        troubles=[EVIL],
    )


def test_whatever_is_shown_is_well_formed_and_escaped() -> None:
    for body in (
        page.overview(full(), NOW),
        page.overview(Snapshot(), NOW),
        page.sign_in(token=True, oidc=True, problem=EVIL),
        page.found(
            EVIL, Answer([Decision(event=EVIL, who={"subject": EVIL}, allowed=False)], [EVIL], whole=False)
        ),
    ):
        checker = Checker(page.document("SITE", "title", body, SESSION))
        assert not checker.open
        assert "script" not in checker.names
        assert checker.wanted <= checker.ids
        assert checker.names.count("h1") == 1


def test_what_it_says() -> None:
    text = page.overview(full(), NOW)
    assert "2 of 2 processes need attention" in text
    assert "h200: 1 of 4" in text
    assert "75.0%" in text
    assert "not measured" in text
    assert "Draining, new jobs are refused: all queues" in text


def test_plots_are_xml_and_stack() -> None:
    plot = Plot("CPU", ["2026-01-01", "2026-01-02"], {"a": {"2026-01-01": 30}, "b": {"2026-01-01": 20}}, str)
    figure = ElementTree.fromstring(str(bars(plot, palette({"a": 30, "b": 20}), "p")))
    first, second = figure.iter("rect")
    assert float(second.get("y") or 0) < float(first.get("y") or 0)
    assert "Nothing" in bars(Plot("CPU", ["2026-01-01"], {}, str), {}, "p")


def test_more_vos_than_colours_share_the_last() -> None:
    colours = palette({f"vo{n:02}": float(n) for n in range(20)})
    assert colours["vo19"] == 0 and colours["vo00"] == 7


@pytest.mark.parametrize(
    ("value", "top"), [(0, 0), (0.3, 0.5), (1, 1), (1.1, 2), (49, 50), (51, 100), (5e12, 5e12)]
)
def test_scales(value: float, top: float) -> None:
    assert ceiling(value) == pytest.approx(top)


def test_only_what_tag_made_is_not_escaped() -> None:
    assert tag("p", "<b>", Safe("<b></b>"), title='"') == '<p title="&quot;">&lt;b&gt;<b></b></p>'


def test_hits_of_the_cache() -> None:
    (found,) = hits(full().readings)
    assert (found.requests, found.hits) == (4, 3)


def test_sessions_end_and_are_bounded() -> None:
    sessions = Sessions(10, 2)
    first, second, third = (sessions.open("x", float(n)) for n in range(3))
    assert sessions.get(first, 3) is None and len(sessions) == 2
    assert sessions.get(second, 10.9) is not None
    assert sessions.get(second, 11) is None
    sessions.close(third)
    assert sessions.get(third, 3) is None
