"""What was moved is found again in ``edged usage``, by day, VO and account."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from edged.usage import DAY_S, Span, day_of
from services.storage.usage import DayFiles, Moved
from tests.real.storage.conftest import THIRD_PARTY
from tests.real.storage.test_third_party import last, pull
from tests.support.dav import Dav
from tests.support.storage import StorageSite

SMALL, LARGE = b"x" * 1000, b"y" * 3_000_000


def test_usage_of_all_processes(ground: Path, site: StorageSite, other: StorageSite) -> None:
    """Two processes, stopped before the ledger is read: what they had in memory is written at the end."""
    settings = {"workers": 2, "third_party": THIRD_PARTY}
    used = StorageSite(ground / "used", ca=site.ca, issuer=site.issuer, settings=settings)
    other.put_file("usage-source", LARGE)
    with used:
        for _ in range(4):
            with Dav(used) as dav:
                dav("PUT", "small", SMALL)
                dav("PUT", "large", LARGE)
                assert (dav("GET", "small").body, dav("GET", "large").body) == (SMALL, LARGE)
                assert dav("GET", "large", Range="bytes=100-1099").status == 206
                source = f"{other.url}/usage-source"
                assert last(pull(dav, "pulled", source)) == "success: Created"
                away = {"Destination": f"{other.url}/usage-target"}
                token = f"Bearer {dav.token}"
                assert (
                    last(dav("COPY", "large", TransferHeaderAuthorization=token, **away))
                    == "success: Created"
                )
                assert dav("COPY", "large", Destination=dav.url("local")).status in (201, 204)
    config = str(used.directory / "edged.toml")
    argv = [sys.executable, "-m", "edged", "usage", "--config", config, "--by", "day,vo,account"]
    said = subprocess.run([*argv, "--format", "json"], check=True, capture_output=True, timeout=30)
    (row,) = json.loads(said.stdout)
    assert (row["vo"], row["account"]) == ("cms", used.account)
    assert row["day"] in (day_of(time.time()), day_of(time.time() - 600))
    assert row["bytes_in"] == 4 * (len(SMALL) + 2 * len(LARGE))
    assert row["bytes_out"] == 4 * (2 * len(SMALL) + 2 * len(LARGE))


def test_day_files_are_shrunk_when_nobody_adds_any_more(tmp_path: Path) -> None:
    files = DayFiles(tmp_path)
    now = 1_800_000_000.0
    days = [day_of(now - ago * DAY_S) for ago in (0, 1, 2, 900)]
    for day in days:
        for _ in range(50):
            files.add(day, [Moved("cms", "cmsprd", 10, 1), Moved("atlas", "atlprd", 0, 5)])
    (tmp_path / days[2]).open("ab").write(b'["cms","cmsp')  # a disk was full
    span = Span(days[2], days[0])
    before = sorted(map(repr, files.rows(span)))
    files.shrink(days[0])
    assert sorted(map(repr, files.rows(span))) == before
    lines = [len((tmp_path / day).read_bytes().splitlines()) for day in days[:3]]
    assert lines == [100, 100, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(days[:3])
    assert {row.vo for row in files.rows(Span(days[0], days[0], ("atlas",)))} == {"atlas"}
