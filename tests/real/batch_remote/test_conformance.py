"""The published suite against Slurm behind a real sshd, and behind a real slurmrestd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from services.jobs.batch.conformance import Conformance
from services.jobs.batch.protocol import BatchRef, GpuRequest
from tests.real.batch_remote.reaching import (
    RemoteSubject,
    Scratch,
    rest_cluster,
    rest_subject,
    ssh_cluster,
    ssh_subject,
)
from tests.support.local_accounts import CMSPRD
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.sshd import Sshd

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

KNOWN: dict[str, Any] = {
    "filler": {"nodes": 2, "tasks": 2, "exclusive": True},
    "impossible": {"memory_per_node": 1 << 50},
    "gpu": {"partition": "gpu", "gpus": GpuRequest("gpu:h200", 1)},
}


@dataclass
class Both:
    ssh: RemoteSubject
    rest: RemoteSubject


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(slurm: SlurmTestbed) -> AsyncIterator[Both]:
    """Both ways to one Slurm. It counts in minutes, so the jobs for the time limit start now."""
    signing, scratch = Signing(jwt_key=slurm.layout.jwt_key), Scratch()
    with Sshd(signing.authority, environment=slurm.environment) as node:
        async with (
            ssh_subject(ssh_cluster(scratch, node), signing, CMSPRD.name, scratch, **KNOWN) as ssh,
            rest_subject(rest_cluster(scratch, slurm), signing, CMSPRD.name, scratch, **KNOWN) as rest,
        ):
            for one in (ssh, rest):
                one.early = await one.shell("sleep 600", partition="gpu", walltime_s=60)
            yield Both(ssh, rest)
    scratch.remove()


@pytest.mark.parametrize("name", [name for name in vars(Conformance) if name.startswith("test_")])
async def test_suite(both: Both, name: str) -> None:
    """One test of the suite, by both ways at once: most of its time is Slurm's own."""
    test = getattr(Conformance(), name)
    async with asyncio.TaskGroup() as tasks:
        for way in (both.ssh, both.rest):
            tasks.create_task(test(way), name=way.system.name)


async def test_a_job_of_one_way_is_found_by_the_other(both: Both) -> None:
    ref = await both.ssh.shell("exit 0")
    found = await both.rest.system.find(both.rest.grant, ref.name.removeprefix("edged-"), 0.0)
    assert [one.ref.id for one in found] == [ref.id]
    assert isinstance(await both.ssh.final(ref), object)
    assert BatchRef(found[0].ref.cluster, ref.id, 0.0, ref.name).same(found[0].ref)
