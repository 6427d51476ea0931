"""The edge that the tests here operate: made once, by the roles, on a machine booted for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.edge import Edge, bare, wheelhouse
from tests.support.machine import CannotBoot


@pytest.fixture(scope="session")
def wheels() -> Path:
    """Everything an edge installs, as an archive."""
    return wheelhouse()


@pytest.fixture(scope="session")
def edge(wheels: Path) -> Iterator[Edge]:
    """A machine with the roles applied once. Where none can be booted the tests are skipped, loudly."""
    with tempfile.TemporaryDirectory(prefix="edged-operate-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        try:
            with bare(scratch) as found:
                found.first = found.play(edged_wheelhouse=str(wheels))
                yield found
        except CannotBoot as why:
            loud = f"UNPROVEN HERE: units and roles were not tried on a booted systemd: {why}"
            pytest.skip(loud)
