"""kill -9 at random points of a stream of submissions: nothing lost, nothing run twice.

Every job makes one file with a random suffix each time it runs. A bounded number of points here;
tests/bench/job_kills.py runs as many as it is told.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.real.jobs.fixtures import local_jobs, slurm_settings
from tests.support.killing import Killing
from tests.support.site import Site
from tests.support.slurm import SlurmTestbed

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.timeout(240)
async def test_local_jobs_survive_kills_of_the_daemon() -> None:
    with tempfile.TemporaryDirectory(prefix="edged-kill-") as root:
        site = Site(Path(root), jobs=local_jobs(Path(root), settle_s=3, client_deadline_s=12))
        async with site.running():
            found = await Killing(site, seed=1, points=6, per_point=4).run()
        assert found.lost == [], found
        assert found.doubled == [], found
        assert found.finished == found.acknowledged


@pytest.mark.slurm
@pytest.mark.root
@pytest.mark.timeout(300)
async def test_slurm_jobs_survive_kills_of_daemon_accountd_and_workers(slurm: SlurmTestbed) -> None:
    with tempfile.TemporaryDirectory(prefix="edged-kill-") as root:
        site = Site(Path(root))
        site.sections.update(slurm_settings(Path(root), slurm, site.issuer.url, stuck_s=600))
        async with site.running():
            found = await Killing(site, seed=2, points=6, per_point=4).run()
        assert found.lost == [], found
        assert found.doubled == [], found
        assert found.finished == found.acknowledged
