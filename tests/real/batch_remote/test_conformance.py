"""The published suite by SSH and by slurmrestd, on the host's own Slurm."""

from __future__ import annotations

import pytest

from tests.real.batch_remote.suite import suite_by_every_way

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.timeout(400)]


async def test_the_suite_by_every_way() -> None:
    await suite_by_every_way("host")
