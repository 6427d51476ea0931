"""The connection cut at every step of a submission: each job runs once, and its state is true in the end.

One site with a cluster for each step, a relay before each that cuts there, and a broker that submits a job with an
input to all of them at once. What the broker was refused it asks again.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import pytest_asyncio

from edged.client import ApiClient
from edged.errors import Busy, Unavailable
from tests.real.batch_remote.reaching import Scratch
from tests.support.cutting import (
    Cut,
    Handshake,
    HandshakeRelay,
    RestRelay,
    RestStep,
    SessionRelay,
    SessionStep,
    Step,
)
from tests.support.local_accounts import CMSPRD
from tests.support.site import Site, ended, output, queue
from tests.support.slurm import SlurmTestbed
from tests.support.sshd import Sshd

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),  # the first of them waits for all
]

INPUT = b"of the input\n" * 20_000
SCRIPT = "#!/bin/sh\necho ran >>runs\ncat data/in >copy\nexit 4\n"
MOST_S = 200.0  # mostly half a minute: what proves that a job is absent takes 18 s

# after these the far side may go on with what it was asked, not knowing that nobody listens any more
SILENT = (
    SessionStep.SCRIPT_SENT,
    SessionStep.SBATCH_DONE,
    SessionStep.ANSWER_HALF,
    SessionStep.WRITE_DONE,
    SessionStep.RENAME_DONE,
    RestStep.JOB_HALF,
    RestStep.JOB_SENT,
    RestStep.SUBMITTED,
)
CASES: tuple[tuple[Step, bool], ...] = (
    *((step, True) for kind in (Handshake, SessionStep, RestStep) for step in kind),
    *((step, False) for step in SILENT),
)


def named(case: tuple[Step, bool]) -> str:
    step, told = case
    return f"{type(step).__name__}.{step.name}" + ("" if told else ", the far side not told")


@dataclass
class Outcome:
    """What became of the job whose connection was cut. ``known``: how many jobs of its name Slurm knows."""

    cut: bool
    view: dict[str, Any]
    runs: str
    copy: bytes
    known: int


@dataclass
class Place:
    """Where the relays stand."""

    site: Site
    node: Sshd
    slurm: SlurmTestbed
    key: asyncssh.SSHKey
    relays: AsyncExitStack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes(slurm: SlurmTestbed) -> dict[tuple[Step, bool], Outcome]:
    """All jobs, each cut at its step, at their ends."""
    scratch = Scratch()
    scratch.account(CMSPRD.name)
    cuts = {case: Cut(case[0], told=case[1]) for case in CASES}
    with (
        tempfile.TemporaryDirectory(prefix="edged-cuts-") as name,
        Sshd(environment=slurm.environment, settings={"MaxStartups": "200"}) as node,
    ):
        async with AsyncExitStack() as relays:
            site, key = Site(Path(name)), asyncssh.generate_private_key("ssh-ed25519")
            node.authorize(CMSPRD.name, key.export_public_key().decode().strip())
            place = Place(site, node, slurm, key, relays)
            sections = [await _cluster(place, f"cut{n}", cut) for n, cut in enumerate(cuts.values())]
            site.sections |= _sections(place, scratch, [section for section, _ in sections])
            async with site.running():
                authority = (site.root / "state/identity/ssh_ca.pub").read_text().strip()
                node.trust(authority)
                for _, relay in sections:
                    if isinstance(relay, SessionRelay):
                        relay.authority = asyncssh.import_public_key(authority)
                async with site.api() as api, asyncio.timeout(MOST_S):
                    jobs = (_tried(api, slurm, n, cut) for n, cut in enumerate(cuts.values()))
                    found = await asyncio.gather(*jobs)
    scratch.remove()
    return dict(zip(CASES, found, strict=True))


async def _cluster(place: Place, name: str, cut: Cut) -> tuple[dict[str, Any], object]:
    """A [[jobs.cluster]] behind a relay that makes the cut."""
    ssh = {"name": name, "kind": "ssh", "keepalive_s": 2.0}
    match cut.step:
        case Handshake():
            shaken = await place.relays.enter_async_context(HandshakeRelay(place.node.port, cut).running())
            return {**ssh, "login": [shaken.login], "host_keys": [place.node.host_key]}, shaken
        case SessionStep():
            ended = SessionRelay(place.node, place.key, cut)
            await place.relays.enter_async_context(ended.running())
            return {**ssh, "login": [ended.login], "host_keys": [ended.host_key]}, ended
        case _:
            relay = RestRelay(place.slurm.layout.rest_socket, cut)
            await place.relays.enter_async_context(relay.running())
            return {"name": name, "kind": "slurmrest", "url": relay.url, "sessions_by": "whole"}, relay


def _sections(place: Place, scratch: Scratch, clusters: list[dict[str, Any]]) -> dict[str, Any]:
    site = place.site
    key = site.root / "jwt.key"
    key.write_bytes(place.slurm.layout.jwt_key.read_bytes())
    key.chmod(0o644)  # one daemon for all services here; at a site only identity's user reads it
    whole = {
        "name": "whole",
        "kind": "ssh",
        "login": [place.node.login],
        "host_keys": [place.node.host_key],
    }
    for cluster in (whole, *clusters):
        cluster["sessions"] = scratch.template
        if cluster["kind"] == "slurmrest":
            cluster["jwt_key"] = str(key)
    return {
        "accounts": {"mode": "accountd", "minimum_uid": 1000},
        "mapping": [{"issuer": site.issuer.url, "groups": ["/cms"], "account": CMSPRD.name}],
        "jobs": {
            "listen": ["127.0.0.1:0"],
            "batch": "whole",
            "poll_s": 2.0,
            "settle_s": 6,
            "client_deadline_s": 12,
            "submit_parallel": 2 * len(CASES),
            "cluster": [whole, *clusters],
            "queue": [queue(one["name"], batch=one["name"], partition="cpu") for one in clusters],
        },
    }


async def _tried(api: ApiClient, slurm: SlurmTestbed, number: int, cut: Cut) -> Outcome:
    """A job through the relay that makes ``cut``, to its end."""
    body = {"script": SCRIPT, "queue": f"cut{number}", "inputs": ["data/in"]}
    job = str((await api.call("POST", "/v1/jobs", body=body))["id"])
    while not await _sent(api, job):
        pass
    view = await ended(api, job, MOST_S)
    async with api.request("GET", f"/v1/jobs/{job}/files/copy") as response:
        copy = await response.read()
    rows = await asyncio.to_thread(
        slurm.output, "sacct", "-X", "-n", "-P", f"--name=edged-{job}", "-o", "JobIDRaw", "-S", "now-1hour"
    )
    return Outcome(cut.happened.is_set(), view, await output(api, job, "runs"), copy, len(rows.split()))


async def _sent(api: ApiClient, job: str) -> bool:
    """The input, as a broker sends it: again when it was told that it did not arrive."""
    try:
        async with api.request("PUT", f"/v1/jobs/{job}/files/data/in", data=INPUT):
            return True
    except (Busy, Unavailable):
        return False


@pytest.mark.parametrize("case", CASES, ids=named)
async def test_a_job_whose_connection_is_cut_runs_once(
    outcomes: dict[tuple[Step, bool], Outcome], case: tuple[Step, bool]
) -> None:
    found = outcomes[case]
    assert found.cut, "this step was never come to"
    assert (found.view["state"], found.view["exit_code"]) == ("FAILED", 4), found.view
    assert found.runs == "ran\n"
    assert found.copy == INPUT
    assert found.known == 1, "nothing was submitted twice"
