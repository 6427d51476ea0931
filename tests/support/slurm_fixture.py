"""pytest fixtures of the Slurm testbed, for a conftest.py: ``from tests.support.slurm_fixture import *``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.slurm import SlurmTestbed, missing

__all__ = ["slurm"]


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmTestbed]:
    """A real Slurm with accounting, shared by the tests of one run. Who breaks it mends it."""
    if why := missing():
        pytest.skip(why)
    with SlurmTestbed() as testbed:
        yield testbed
