"""The published suite against the slurm driver on a real Slurm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from services.jobs.batch.conformance import Conformance, Subject
from services.jobs.batch.protocol import BatchRef, BatchState, GpuRequest
from services.jobs.batch.script import Payload
from services.jobs.batch.slurm.driver import DRIVER
from tests.real.batch.subjects import subject
from tests.support.local_accounts import CMSPRD
from tests.support.slurm import SlurmTestbed

pytestmark = [pytest.mark.slurm, pytest.mark.root]


@pytest.fixture(scope="module", name="subject")
def driver_subject(slurm: SlurmTestbed) -> Iterator[Subject]:
    known: dict[str, Any] = {
        "base": {"partition": "cpu", "memory_per_node": 100 << 20, "walltime_s": 600},
        "filler": {"nodes": 2, "tasks": 2, "exclusive": True},
        "impossible": {"memory_per_node": 1 << 50},
        "gpu": {"partition": "gpu", "gpus": GpuRequest("gpu:h200", 2)},
        "patience_s": 90.0,
    }
    with subject(DRIVER, CMSPRD.name, slurm.environment, **known) as found:
        # Slurm counts in minutes: this job is on the gpu node, out of the others' way, from the start
        early = asyncio.run(found.shell("sleep 600", partition="gpu", walltime_s=60))
        yield Early(**vars(found), early=early)


class TestSlurm(Conformance):
    async def test_mpi_starts_its_tasks_on_every_node(self, subject: Subject) -> None:
        text = 'echo "$SLURM_PROCID $SLURMD_NODENAME $FROM_USER"'
        payload = Payload(script=text, stdout="out", mpi="pmi2", environment={"FROM_USER": "a b"})
        ref = await subject.submit(payload, nodes=2, tasks=4, mpi="pmi2")
        done = await subject.final(ref)
        assert (done.state, done.nodes) == (BatchState.FINISHED, ("c1", "c2"))
        lines = sorted(subject.output(ref).splitlines())
        assert [line.split(" ", 1)[0] for line in lines] == ["0", "1", "2", "3"]
        assert {line.split(" ")[1] for line in lines} == {"c1", "c2"}
        assert all(line.endswith(" a b") for line in lines)


class Early(Subject):
    """A subject whose job for the time limit has been running for a while."""

    def __init__(self, early: BatchRef, **known: Any) -> None:
        super().__init__(**known)
        self.early = early

    async def walltime_job(self) -> BatchRef:
        return self.early
