"""The whole spine on a real Slurm: two VOs, two accounts, GPUs, and a controller that misbehaves."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from edged.errors import NotFound
from tests.support.site import Site, ended, output, reached
from tests.support.slurm import SlurmTestbed
from tests.support.waiting import until_async

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slurm, pytest.mark.root]


async def test_curl_with_a_token_runs_on_the_gpu_partition_as_its_account(slurm_site: Site) -> None:
    body = {
        "script": "#!/bin/sh\nid -un\necho $CUDA_VISIBLE_DEVICES\necho $SLURM_JOB_PARTITION $EDGED_JOB_ID\n",
        "resources": {"gpus": {"kind": "h200", "count": 2}},
    }
    header = slurm_site.root / "header"
    header.write_text(f"Authorization: Bearer {slurm_site.token()}\n")
    argv = ["curl", "-sS", "--cacert", str(slurm_site.issuer.ca.file), "-H", f"@{header}"]
    argv += ["--json", json.dumps(body), f"{slurm_site.url('jobs')}/v1/jobs"]
    done = await asyncio.to_thread(lambda: subprocess.run(argv, capture_output=True, timeout=20, check=True))
    made = json.loads(done.stdout)
    async with slurm_site.api() as api:
        view = await ended(api, made["id"])
        assert view["state"] == "FINISHED", view
        assert view["allocated"]["gres/gpu:h200"] == "2"
        said = (await output(api, made["id"])).split()
    assert said[0] == "cmsprd"
    assert len(said[1].split(",")) == 2
    assert said[2:] == ["gpu", made["id"]]


async def test_another_vo_sees_nothing(slurm_site: Site) -> None:
    async with (
        slurm_site.api() as cms,
        slurm_site.api(token=slurm_site.token(groups=("/atlas",), sub="bob")) as atlas,
    ):
        job = await cms.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\necho secret; id -un\n"})
        assert (await ended(cms, job["id"]))["state"] == "FINISHED"
        for method, path in (
            ("GET", ""),
            ("POST", "/cancel"),
            ("DELETE", ""),
            ("GET", "/files/stdout"),
            ("GET", "/logs"),
            ("GET", "/description"),
        ):
            with pytest.raises(NotFound):
                await atlas.call(method, f"/v1/jobs/{job['id']}{path}")
        assert job["id"] not in {j["id"] for j in (await atlas.call("GET", "/v1/jobs"))["jobs"]}
        peek = f"#!/bin/sh\nid -un\ncat {slurm_site.root}/sessions/cmsprd/{job['id']}/stdout\n"
        other = await atlas.call("POST", "/v1/jobs", body={"script": peek})
        await ended(atlas, other["id"])
        assert await output(atlas, other["id"]) == "atlprd\n"


async def test_ends_have_their_causes(slurm_site: Site, slurm: SlurmTestbed) -> None:
    async with slurm_site.api() as api:

        async def submit(script: str, **more: object) -> str:
            job = await api.call("POST", "/v1/jobs", body={"script": f"#!/bin/sh\n{script}\n", **more})
            return str(job["id"])

        killed = await submit("kill -9 $$")
        code = await submit("exit 7")
        refused = await submit("true", resources={"memory": 1 << 41})
        stuck = await submit("true", resources={"nodes": 50, "tasks": 50})
        held = await submit("sleep 300")
        view = await reached(api, held, ("RUNNING",))
        slurm.output("scancel", view["batch_id"])
        assert (await ended(api, held))["reason"] == "cancelled by the site"
        assert (await ended(api, code))["exit_code"] == 7
        one = await ended(api, killed)
        assert (one["state"], one["exit_code"]) == ("FAILED", 137)
        assert (await ended(api, refused))["cause"] == "refused"
        assert (await ended(api, stuck))["cause"] == "stuck"


async def test_a_script_cannot_steer_slurm(slurm_site: Site) -> None:
    script = (
        "#!/bin/bash\n#SBATCH --partition=gpu\n#SBATCH --comment=pwned\necho $SLURM_JOB_PARTITION $SBATCH_X\n"
    )
    async with slurm_site.api() as api:
        body = {"script": script, "queue": "cpu", "environment": {"SBATCH_PARTITION": "gpu", "SBATCH_X": "1"}}
        job = await api.call("POST", "/v1/jobs", body=body)
        assert (await ended(api, job["id"]))["state"] == "FINISHED"
        assert await output(api, job["id"]) == "cpu\n"


async def test_a_held_job_is_said_to_be_held(slurm_site: Site, slurm: SlurmTestbed) -> None:
    async with slurm_site.api() as api:
        slurm.output("scontrol", "update", "PartitionName=cpu", "State=DOWN")
        try:
            job = await api.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\ntrue\n", "queue": "cpu"})
            view = await reached(api, job["id"], ("QUEUED",))
            slurm.hold(view["batch_id"])
            await reached(api, job["id"], ("HELD",))
            slurm.release(view["batch_id"])
        finally:
            slurm.output("scontrol", "update", "PartitionName=cpu", "State=UP")
        assert (await ended(api, job["id"]))["state"] == "FINISHED"


async def test_a_frozen_controller_loses_and_doubles_nothing(slurm_site: Site, slurm: SlurmTestbed) -> None:
    count = Path(slurm_site.root) / "count"
    count.mkdir(mode=0o777)
    count.chmod(0o777)
    script = f"#!/bin/sh\nmktemp {count}/$EDGED_JOB_ID.XXXXXX\n"
    async with slurm_site.api() as api:
        slurm.freeze_controller()
        try:
            body = {"jobs": [{"script": script} for _ in range(3)]}
            made = [o["job"]["id"] for o in (await api.call("POST", "/v1/jobs/bulk", body=body))["jobs"]]
            await reached(api, made[0], ("SUBMITTING",))
            await asyncio.to_thread(slurm_client_gave_up, slurm_site, made[0])
        finally:
            slurm.thaw_controller()
        for job in made:
            assert (await ended(api, job, 90))["state"] == "FINISHED"
    runs = sorted(path.name.partition(".")[0] for path in count.iterdir())
    assert runs == sorted(made)


def slurm_client_gave_up(site: Site, job: str) -> None:
    """Until the log tells that the first submission's outcome is unknown."""
    from tests.support.waiting import until

    until(
        lambda: any("job waits" in line and job in line for line in site.log().splitlines()), "a time-out", 40
    )


async def test_a_controller_that_forgot_its_jobs_makes_them_lost(
    slurm_site: Site, slurm: SlurmTestbed
) -> None:
    """They ran when it died; their ids are given to others, which are not taken for them."""
    slurm.keep_state()
    async with slurm_site.api() as api:
        sleeping = {"script": "#!/bin/sh\nsleep 20\n", "queue": "cpu"}
        made = [(await api.call("POST", "/v1/jobs", body=sleeping))["id"] for _ in range(3)]
        lost = [(await reached(api, job, ("RUNNING",)))["batch_id"] for job in made]
        await asyncio.to_thread(slurm.lose_state)
        true = {"script": "#!/bin/sh\ntrue\n", "queue": "cpu"}
        again = [(await api.call("POST", "/v1/jobs", body=true))["id"] for _ in range(3)]
        views = [await ended(api, job) for job in again]
        assert [view["state"] for view in views] == ["FINISHED"] * 3, views
        assert sorted(view["batch_id"] for view in views) == sorted(lost)
        views = [await ended(api, job, 90) for job in made]
        assert [view["state"] for view in views] == ["LOST"] * 3, views


async def test_accounting_that_is_down_holds_up_nobody_and_tells_later(
    slurm_site: Site, slurm: SlurmTestbed
) -> None:
    """Meanwhile another job is cancelled; exit code and usage come when slurmdbd is back."""
    slurmdbd = next(daemon for daemon in slurm.daemons if daemon.name == "slurmdbd")
    slurmdbd.freeze()
    try:
        async with slurm_site.api() as api:
            ends = await api.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\nexit 3\n"})
            sleeps = await api.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\nsleep 600\n"})
            await reached(api, sleeps["id"], ("RUNNING",))
            view = await ended(api, ends["id"], 90)
            assert view["state"] == "FAILED"
            assert "exit_code" not in view
            assert "accounting" in view["reason"]
            await api.call("POST", f"/v1/jobs/{sleeps['id']}/cancel")
            assert (await ended(api, sleeps["id"], 90))["state"] == "KILLED"
    finally:
        slurmdbd.thaw()

    async with slurm_site.api() as api:

        async def told() -> bool:
            view = await api.call("GET", f"/v1/jobs/{ends['id']}")
            return view.get("exit_code") == 3 and view["state"] == "FAILED" and "reason" not in view

        await until_async(told, "accounting told the exit code", 120)
