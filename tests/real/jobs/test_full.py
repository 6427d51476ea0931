"""When there is no room: in Slurm, and on the gateway's own disk."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.errors import NoSpace, Unavailable
from tests.real.jobs.fixtures import local_jobs, slurm_settings
from tests.support.local_accounts import CMSPRD
from tests.support.site import Site, ended
from tests.support.slurm import SlurmTestbed

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slurm, pytest.mark.root]
TRUE = {"script": "#!/bin/sh\ntrue\n"}


async def test_jobs_over_slurms_submit_limit_get_in_as_others_end(
    slurm_site: Site, slurm: SlurmTestbed
) -> None:
    """Two at a time, and no job waits for the minute after which one that was refused asks again."""
    who = ("user", CMSPRD.name, "where", "account=cms")
    slurm.output("sacctmgr", "-i", "modify", *who, "set", "MaxSubmitJobs=2")
    try:
        async with slurm_site.api() as api:
            body = {"jobs": [{**TRUE, "queue": "cpu"}] * 12}
            made = [one["job"]["id"] for one in (await api.call("POST", "/v1/jobs/bulk", body=body))["jobs"]]
            views = await asyncio.gather(*(ended(api, job, 55) for job in made))
    finally:
        slurm.output("sacctmgr", "-i", "modify", *who, "set", "MaxSubmitJobs=-1")
    assert {view["state"] for view in views} == {"FINISHED"}
    refused = slurm_site.log().count("job waits")
    assert 0 < refused <= 24, "one tries for each that got in or ended; they do not all try all the time"


async def test_an_offer_ends_when_slurm_was_full_for_too_long(slurm: SlurmTestbed) -> None:
    """pilot1's default Slurm account may never submit, and this queue names no other."""
    with tempfile.TemporaryDirectory(prefix="edged-site-") as place:
        site = Site(Path(place))
        site.sections.update(slurm_settings(site.root, slurm, site.issuer.url, busy_s=0.001))
        site.sections["mapping"][1]["account"] = "pilot1"
        async with site.running(), site.api() as api:
            job = (await api.call("POST", "/v1/jobs", body={**TRUE, "queue": "cpu"}))["id"]
            view = await ended(api, job)
    assert (view["state"], view["cause"]) == ("FAILED", "refused")
    assert "full for" in view["reason"]
    assert "SubmitJobs" in view["reason"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MiB of their own for the state."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "edged-test", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


async def test_a_full_disk_refuses_before_the_acknowledgement(small_disk: Path, tmp_path: Path) -> None:
    """What was acknowledged is there after a restart, what was refused is not, and room heals it."""
    site = Site(tmp_path, jobs=local_jobs(tmp_path))
    site.sections["runtime"] = {**site.settings()["runtime"], "state": str(small_disk)}
    big = {**TRUE, "script": "#!/bin/sh\n#" + "x" * 100_000 + "\n", "inputs": ["never"]}
    async with site.running():
        made: list[str] = []
        async with site.api() as api:
            with pytest.raises((Unavailable, NoSpace)):
                for _ in range(100):
                    job = await api.call("POST", "/v1/jobs", body=big)
                    made.append(job["id"])
            assert made
        site.kill()
        await site.start()
        async with site.api() as api:
            held = [job["id"] for job in (await api.call("GET", "/v1/jobs", limit=1000))["jobs"]]
            assert sorted(held) == sorted(made)
            subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
            job = (await api.call("POST", "/v1/jobs", body=TRUE))["id"]
            assert (await ended(api, job))["state"] == "FINISHED"
