"""The published suite against Slurm behind a real sshd."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.jobs.batch.conformance import Conformance, Subject
from services.jobs.batch.protocol import BatchRef, GpuRequest
from tests.real.batch_remote.reaching import Scratch, ssh_cluster, ssh_subject
from tests.support.local_accounts import CMSPRD
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.sshd import Sshd, missing

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="subject")
async def far_subject(slurm: SlurmTestbed) -> AsyncIterator[Subject]:
    if why := missing():
        pytest.skip(why)
    signing, scratch = Signing(), Scratch()
    with Sshd(signing.authority, environment=slurm.environment) as node:
        cluster = ssh_cluster(scratch, node)
        known = {
            "filler": {"nodes": 2, "tasks": 2, "exclusive": True},
            "impossible": {"memory_per_node": 1 << 50},
            "gpu": {"partition": "gpu", "gpus": GpuRequest("gpu:h200", 2)},
        }
        async with ssh_subject(cluster, signing, CMSPRD.name, scratch, **known) as found:
            # Slurm counts in minutes: this job runs on the gpu node, out of the others' way, from the start
            early = await found.shell("sleep 600", partition="gpu", walltime_s=60)
            found.walltime_job = lambda: _ready(early)  # type: ignore[method-assign]
            yield found
    scratch.remove()


async def _ready(ref: BatchRef) -> BatchRef:
    return ref


class TestSsh(Conformance):
    pass
