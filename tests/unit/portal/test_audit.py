"""Reading audit logs from the end, within limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.portal import audit


def line(second: int, **fields: object) -> str:
    told = {
        "time": f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000Z",
        "level": "info",
        "event": "token",
        **fields,
    }
    return json.dumps(told, separators=(",", ":")) + "\n"


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_lines_come_backwards_whole(tmp_path: Path, block: int) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"one\n\nthree, a longer one\nlast without end")
    assert [x for x in audit.backwards(file, 1 << 20, block=block) if x] == [
        b"last without end",
        b"three, a longer one",
        b"one",
    ]


def test_no_more_than_the_limit_is_read_and_no_cut_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"0123456789\n" * 100)
    assert [x for x in audit.backwards(file, 25) if x] == [b"0123456789"] * 2


def test_search_is_newest_first_over_all_files_and_tells_what_it_missed(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(
        line(1, who={"subject": "Alice"}) + line(3, who={"subject": "alice"}) + "not json alice\n"
    )
    second.write_text(line(2, who={"subject": "alice"}, allowed=False, reason="no mapping", extra=[1]))
    answer = audit.search([first, second, tmp_path / "none"], "ALICE", limit=1 << 20, most=2)
    assert [found.time[17:19] for found in answer.lines] == ["03", "02"]
    assert len(answer.unread) == 1 and not answer.whole


def test_text_is_looked_for_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(line(1, reason='says "no"\\') + line(2, reason="other"))
    assert len(audit.search([file], '"no"\\', limit=1 << 20, most=10).lines) == 1


def test_refusals_count_what_each_line_stands_for_and_stop_at_their_time(tmp_path: Path) -> None:
    file = tmp_path / "log"
    old, new = line(1, allowed=False, reason="x"), line(90, allowed=False, reason="x")
    file.write_text(
        old + new + line(91, allowed=False, reason="x", times=5) + line(92, allowed=True, reason="")
    )
    counts, unread = audit.refusals([file], "2026-01-01T00:01", limit=1 << 20)
    assert counts == {("token", "x"): 6} and not unread
