"""ARC's own clients, unchanged, with an X.509 proxy, on the local batch system."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.real.doors.arc.fixtures import Arc, ArcSite, no_arc

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(no_arc() is not None, reason=str(no_arc())),
]


@pytest_asyncio.fixture(loop_scope="module")
async def clients(arc: ArcSite, tmp_path: Path) -> AsyncIterator[Arc]:
    yield Arc(arc, tmp_path)


async def submitted(clients: Arc, text: str) -> str:
    """The job's URL."""
    file = clients.home / "job.xrsl"
    file.write_text(text)
    out = await clients.run(
        "arcsub", "-T", "arcrest", "-C", f"https://{clients.site.address}/arex", str(file)
    )
    assert "Job submitted with jobid:" in out, out
    return out.split("Job submitted with jobid:")[1].split()[0]


async def finished(clients: Arc, job: str, word: str = "Finished") -> str:
    async with asyncio.timeout(40):
        while True:
            out = await clients.run("arcstat", "-l", job, status=None)
            if f"State: {word}" in out:
                return out
            await asyncio.sleep(0.3)


async def test_from_arcsub_to_arcclean(clients: Arc) -> None:
    (clients.home / "in.txt").write_text("hello from alice\n")
    (clients.home / "run.sh").write_text(
        "#!/bin/sh\ncat in.txt; echo oops >&2; mkdir d; echo deep > d/deep; echo 3 > left\n"
    )
    job = await submitted(
        clients,
        '&(executable="run.sh")(inputfiles=("run.sh" "")("in.txt" ""))(stdout="out.txt")(stderr="err.txt")'
        '(outputfiles=("d/" ""))(jobname="first")(walltime="5 minutes")(memory=100)(gmlog="log")',
    )
    out = await finished(clients, job)
    assert "Name: first" in out and "Exit Code: 0" in out
    assert "hello from alice" in await clients.run("arccat", job)
    assert "oops" in await clients.run("arccat", "-e", job)
    assert "FINISHED" in await clients.run("arccat", "-l", job)
    listing = await clients.run("arcls", f"{job}/session")
    assert "out.txt" in listing and "left" not in listing and "run.sh" not in listing
    await clients.run("arcget", "-D", str(clients.home / "got"), job)
    found = {file.name: file.read_text() for file in (clients.home / "got").rglob("*") if file.is_file()}
    assert found["out.txt"] == "hello from alice\n" and found["deep"] == "deep\n" and "left" not in found
    async with clients.site.http() as rest:
        assert (await rest.act("status", job.rpartition("/")[2]))[0]["status-code"] == "404"


async def test_kill_resume_renew_and_sync(clients: Arc) -> None:
    long = await submitted(clients, '&(executable="/bin/sleep")(arguments="100")(jobname="long")')
    once = await submitted(
        clients,
        '&(executable="/bin/sh")(arguments="-c" "[ -f again ] && exit 0; touch again; exit 3")'
        '(stdout="o")(rerun=1)(outputfiles=("/" ""))',
    )
    assert "Exit Code: 3" in await finished(clients, once, "Failed")
    await clients.run("arcresume", once)
    assert "Exit Code: 0" in await finished(clients, once)
    await finished(clients, long, "Running")
    assert "renewed: 1" in await clients.run("arcrenew", long)
    await clients.run("arckill", "-k", long)
    await finished(clients, long, "Killed")
    (clients.home / ".arc" / "jobs.dat").unlink()
    found = await clients.run("arcsync", "-f", "-C", f"https://{clients.site.address}/arex")
    assert long in found and once in found
    await clients.run("arcclean", long, once)


async def test_several_jobs_by_any_way_in(clients: Arc) -> None:
    """Without -T the client tries EMI-ES first, and must come back to REST."""
    file = clients.home / "any.xrsl"
    file.write_text('&(executable="/bin/true")(stdout="o")')
    endpoint = f"https://{clients.site.address}/arex"
    out = await clients.run("arcsub", "-C", endpoint, str(file), str(file))
    assert out.count("Job submitted with jobid:") == 2, out
    for job in re.findall(r"jobid: (\S+)", out):
        await finished(clients, job)


async def test_arcinfo_shows_shares_and_software(clients: Arc) -> None:
    out = await clients.run("arcinfo", "-l", "-c", f"https://{clients.site.address}/arex")
    for text in ("Name: short_cms", "hello-1", "Interface: org.nordugrid.arcrest", "Health state: ok"):
        assert text in out, out


async def test_a_bad_description_is_explained(clients: Arc) -> None:
    file = clients.home / "bad.xrsl"
    file.write_text('&(executable="/bin/true")(inputfiles=("x" "https://example.org/x"))')
    command = ("-d", "VERBOSE", "-T", "arcrest", "-C", f"https://{clients.site.address}/arex", str(file))
    out = await clients.run("arcsub", *command, status=1)
    assert "stages nothing itself" in out
