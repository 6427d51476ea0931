"""Through ARC's clients to a real Slurm: cpu and gpu jobs as their accounts, restarts, two VOs apart."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest

from tests.real.doors.arc.fixtures import Arc, ArcSite, no_arc

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slurm, pytest.mark.root]


def cms(arc: ArcSite) -> str:
    return arc.site.token(groups=("/cms",))


def atlas(arc: ArcSite) -> str:
    return arc.site.token(sub="bob", groups=("/atlas",))


async def text(rest: object, path: str) -> str:
    return await rest.call("GET", path)  # type: ignore[attr-defined,no-any-return]


@pytest.mark.skipif(no_arc() is not None, reason=str(no_arc()))
async def test_arcsub_runs_cpu_and_gpu_jobs(arc_slurm: ArcSite, tmp_path: Path) -> None:
    clients = Arc(arc_slurm, tmp_path)
    gpu = '(runtimeenvironment="ENV/GPU" "h200" "2")'
    wanted = {"cpu": "(count=2)(memory=50)", "gpu": gpu}
    for name, more in wanted.items():
        (tmp_path / f"{name}.xrsl").write_text(
            '&(executable="/bin/sh")(arguments="-c" "id -un; echo gpus=$SLURM_GPUS_ON_NODE; echo $SLURM_JOB_PARTITION")'
            f'(stdout="out")(join=yes)(walltime="PT2M")(queue="{name}"){more}'
        )
    endpoint = f"https://{arc_slurm.address}/arex"
    out = await clients.run("arcsub", "-T", "arcrest", "-C", endpoint, str(tmp_path / "cpu.xrsl"))
    out += await clients.run("arcsub", "-T", "arcrest", "-C", endpoint, str(tmp_path / "gpu.xrsl"))
    cpu, gpu = re.findall(r"jobid: (\S+)", out)
    async with arc_slurm.http() as rest:
        assert await rest.reached(cpu.rpartition("/")[2]) == "FINISHED"
        assert await rest.reached(gpu.rpartition("/")[2]) == "FINISHED"
    assert (await clients.run("arccat", cpu)).splitlines()[:3] == ["cmsprd", "gpus=", "cpu"]
    assert (await clients.run("arccat", gpu)).splitlines()[:3] == ["cmsprd", "gpus=2", "gpu"]


async def test_a_token_job_is_seen_finished_soon_after_slurm_ended_it(arc_slurm: ArcSite) -> None:
    async with arc_slurm.http() as rest:
        (made,) = await rest.submit('&(executable="/bin/sh")(arguments="-c" "date +%s")(stdout="o")')
        assert made["status-code"] == "201", made
        assert await rest.reached(made["id"]) == "FINISHED"
        seen = time.time()
        ended = int(await text(rest, f"/jobs/{made['id']}/session/o"))
        assert seen - ended < 15  # the bar is 5 s, measured by tests/bench/arc_slurm.py on a quiet machine
        document = (await rest.act("info", made["id"]))[0]["info_document"]["ComputingActivity"]
        assert document["ExitCode"] == "0" and document["LocalOwner"] == "cmsprd"
        assert "arcrest:FINISHED" in document["State"] and document["LocalIDFromManager"].isdigit()


async def test_a_failed_job_runs_once_more(arc_slurm: ArcSite) -> None:
    command = "[ -f again ] && { cat again; exit 0; }; echo first > again; exit 7"
    async with arc_slurm.http() as rest:
        text_ = f'&(executable="/bin/sh")(arguments="-c" "{command}")(stdout="o")(rerun=1)'
        (made,) = await rest.submit(text_)
        job = made["id"]
        assert await rest.reached(job) == "FAILED"
        assert [row["status-code"] for row in await rest.act("restart", job)] == ["202"]
        assert await rest.reached(job, ("FINISHED", "FAILED")) == "FINISHED"
        assert (await rest.act("restart", job))[0]["reason"] == "Job has not failed"
        assert await text(rest, f"/jobs/{job}/session/o") == "first\n"
        assert "restarted by alice" in await text(rest, f"/jobs/{job}/diagnose/errors")


async def test_no_restart_is_left(arc_slurm: ArcSite) -> None:
    async with arc_slurm.http() as rest:
        (made,) = await rest.submit('&(executable="/bin/false")')
        assert await rest.reached(made["id"]) == "FAILED"
        row = (await rest.act("restart", made["id"]))[0]
        assert (row["status-code"], row["reason"]) == ("505", "No more restarts allowed")


async def test_two_vos_do_not_see_each_other(arc_slurm: ArcSite) -> None:
    async with arc_slurm.http(cms(arc_slurm)) as ours, arc_slurm.http(atlas(arc_slurm)) as theirs:
        (made,) = await ours.submit('&(executable="/bin/sleep")(arguments=60)(stdout=o)')
        job = made["id"]
        assert job in [row["id"] for row in (await ours.call("GET", "/jobs"))["job"]]
        assert job not in [row["id"] for row in (await theirs.call("GET", "/jobs"))["job"]]
        for action in ("status", "info", "kill", "clean", "restart", "delegations"):
            row = (await theirs.act(action, job))[0]
            assert (row["status-code"], row.get("state")) == ("404", "None"), action
        await theirs.call("GET", f"/jobs/{job}/session/", 404)
        await theirs.call("GET", f"/jobs/{job}/diagnose/errors", 404)
        await theirs.call("PUT", f"/jobs/{job}/session/x", 404, data=b"x")
        assert (await ours.act("kill", job))[0]["status-code"] == "202"
        assert await ours.reached(job, ("KILLED",)) == "KILLED"


async def test_killed_and_cleaned_at_once(arc_slurm: ArcSite) -> None:
    """As HTCondor does it: the clean comes before the job has ended."""
    async with arc_slurm.http() as rest:
        (made,) = await rest.submit('&(executable="/bin/sleep")(arguments=60)')
        job = made["id"]
        assert (await rest.act("kill", job))[0]["status-code"] == "202"
        assert (await rest.act("clean", job))[0]["status-code"] == "202"
        async with asyncio.timeout(30):
            while (await rest.act("status", job))[0]["state"] == "KILLING":
                await asyncio.sleep(0.2)


async def test_gpus_are_published(arc_slurm: ArcSite) -> None:
    async with arc_slurm.http() as rest:
        service = (await rest.call("GET", "/info"))["Domains"]["AdminDomain"]["Services"]["ComputingService"]
    shares = {share["Name"]: share for share in service["ComputingShare"]}
    assert {"cpu", "cpu_cms", "gpu", "gpu_cms"} == set(shares)
    assert shares["gpu_cms"]["ID"].endswith("gpu_cms") and int(shares["gpu"]["FreeAcceleratorSlots"]) > 0
    gpus = service["ComputingManager"]["AcceleratorEnvironments"]["AcceleratorEnvironment"]
    assert gpus[0]["Model"] == "h200" and int(gpus[0]["TotalInstances"]) > 0
    assert int(service["ComputingManager"]["TotalSlots"]) > 0
    for field in ("RunningJobs", "WaitingJobs", "StagingJobs", "PreLRMSWaitingJobs"):
        assert all(int(share[field]) >= 0 for share in shares.values())
