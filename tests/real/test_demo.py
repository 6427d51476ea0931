"""``edged demo``, as a new user runs it: every step succeeds, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.slurm import SlurmTestbed, missing

HEADINGS = ("jobs: ", "storage: ", "cache: ", "egress: ", "portal: ")


def _walk(*more: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edged", "demo", *more],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _check(said: str) -> None:
    assert all(f"\n{heading}" in said for heading in HEADINGS), said
    steps = re.findall(r"^ *(\d+)  .* ms   \S", said, re.MULTILINE)
    assert [int(number) for number in steps] == list(range(1, len(steps) + 1)), said
    assert said.rstrip().endswith("Nothing is left behind."), said
    place = re.search(r"everything in (\S+)", said)
    assert place
    assert not Path(place[1]).exists()
    assert subprocess.run(["pgrep", "-f", place[1]], check=False, capture_output=True).returncode == 1


def test_on_the_embedded_defaults() -> None:
    said = _walk(environment={})
    _check(said)
    assert ("the real xrootd answers" in said) == (shutil.which("xrootd") is not None)


@pytest.mark.slurm
@pytest.mark.root
def test_on_the_machines_slurm() -> None:
    if why := missing():
        pytest.skip(why)
    with SlurmTestbed() as slurm:
        said = _walk("--batch", "slurm", environment={"SLURM_CONF": slurm.environment["SLURM_CONF"]})
    _check(said)
    assert "GPUs: 0" in said
