"""A batch driver that cannot be imported: told of, and nobody else is harmed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.real.jobs.fixtures import local_jobs
from tests.support.site import Site, ended

DRIVER = "raise RuntimeError('made for another release')\n"


def _with_broken_driver(tmp_path: Path, **jobs: str) -> Site:
    """A site where a distribution is installed whose entry point breaks."""
    site = tmp_path / "site-packages"
    info = site / "broken_batch-1.dist-info"
    info.mkdir(parents=True)
    (site / "broken_batch.py").write_text(DRIVER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-batch\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[edged.batch]\nbroken = broken_batch:DRIVER\n")
    for path in (tmp_path, site, info):
        path.chmod(0o755)
    found = Site(tmp_path, jobs=local_jobs(tmp_path, **jobs))
    found.environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return found


async def test_jobs_of_other_drivers_run(tmp_path: Path) -> None:
    async with _with_broken_driver(tmp_path).running() as site, site.api() as api:
        job = await api.call("POST", "/v1/jobs", body={"executable": "/bin/true", "queue": "short"})
        assert (await ended(api, job["id"]))["state"] == "FINISHED"
        (line,) = [line for line in site.log().splitlines() if "batch driver cannot be loaded" in line]
        assert '"driver":"broken"' in line.replace(" ", "")
        assert "made for another release" in line


async def test_a_site_that_asks_for_it_is_told(tmp_path: Path) -> None:
    site = _with_broken_driver(tmp_path, batch="broken")
    with pytest.raises(AssertionError, match=r"jobs.batch: driver 'broken' cannot be loaded: RuntimeError"):
        async with site.running():
            pass
