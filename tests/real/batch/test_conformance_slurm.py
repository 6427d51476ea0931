"""The published suite against the slurm driver on a real Slurm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from services.jobs.batch.conformance import Conformance, Subject
from services.jobs.batch.protocol import BatchRef, GpuRequest
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
    pass


class Early(Subject):
    """A subject whose job for the time limit has been running for a while."""

    def __init__(self, early: BatchRef, **known: Any) -> None:
        super().__init__(**known)
        self.early = early

    async def walltime_job(self) -> BatchRef:
        return self.early
