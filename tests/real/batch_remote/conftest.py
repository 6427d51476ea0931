from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import slurm as testbed
from tests.support import sshd
from tests.support.slurm import SlurmTestbed


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmTestbed]:
    """A real Slurm with accounting and slurmrestd, shared by the tests of one run. Who breaks it mends it."""
    if why := testbed.missing() or sshd.missing():
        pytest.skip(why)
    with SlurmTestbed(rest=True) as found:
        yield found
