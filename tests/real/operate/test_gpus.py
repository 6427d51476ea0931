"""A busy job is told from an idle one: by the sampler on the node, through a library that speaks NVML."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.jobs import gpus
from services.jobs.node import gpu_sampler
from tests.real.jobs.fixtures import slurm_settings
from tests.support.nvml import library
from tests.support.site import Site, ended
from tests.support.slurm import SlurmTestbed, missing
from tests.support.waiting import until

DEADLINE_S = 20.0


class Sampled:
    """The sampler on its own, in a session directory of the test."""

    def __init__(self, here: Path, nvml: Path) -> None:
        self.here, self._nvml = here, nvml

    def run(self, visible: str, load: str, **environment: str) -> gpus.GpuUse | None:
        """What it has measured after some samples, ended as the job's shell ends it."""
        (self.here / "gpu-load").write_text(load)
        result = self.here / "gpus"
        result.unlink(missing_ok=True)
        command = [sys.executable, gpu_sampler.__file__, str(self._nvml), "0.1", str(result)]
        given = {**os.environ, "CUDA_VISIBLE_DEVICES": visible, **environment}
        process = subprocess.Popen(command, cwd=self.here, env=given, stderr=subprocess.DEVNULL)
        try:
            until(lambda: process.poll() is not None or _samples(result) >= 3, "samples")
            process.send_signal(signal.SIGTERM)
        finally:
            process.wait(DEADLINE_S)
        return gpus.sampled(result.read_bytes(), 1e9) if result.exists() else None


def _samples(result: Path) -> int:
    return int(json.loads(result.read_text())["samples"]) if result.exists() else 0


@pytest.fixture
def sampler(tmp_path: Path) -> Sampled:
    return Sampled(tmp_path, library(tmp_path))


@pytest.mark.parametrize(
    ("visible", "load", "environment", "busy"),
    [
        ("0,1", "90 70", {}, 0.8),
        ("0,1", "", {}, 0.0),
        ("2", "100 100 25", {}, 0.25),
        ("GPU-1", "0 50", {}, 0.5),
        ("0", "10 60", {"NVML_CLOSED": "0"}, 0.6),  # a device cgroup: the second is the job's first
    ],
)
def test_busy_is_told_from_idle(
    sampler: Sampled, visible: str, load: str, environment: dict[str, str], busy: float
) -> None:
    use = sampler.run(visible, load, **environment)
    assert use is not None
    assert use.used_s / use.measured_s == pytest.approx(busy)


@pytest.mark.parametrize(("visible", "load"), [("", "90"), ("9", "90"), ("0", "-1")])
def test_what_cannot_be_measured_is_not_called_idle(sampler: Sampled, visible: str, load: str) -> None:
    """No GPU of ours, none of that number, one that does not tell."""
    assert sampler.run(visible, load) is None


def test_no_library_no_figure(tmp_path: Path) -> None:
    assert Sampled(tmp_path, tmp_path / "none.so").run("0", "90") is None


# --- the whole way: a job on a real Slurm, its account's session, the journal, `edged usage`


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmTestbed]:
    if why := missing():
        pytest.skip(why)
    with SlurmTestbed() as testbed:
        yield testbed


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(slurm: SlurmTestbed) -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="edged-site-") as name:
        root = Path(name)
        site = Site(root)
        sampling = {"library": str(library(root)), "period_s": 0.2, "python": sys.executable}
        site.sections.update(slurm_settings(root, slurm, site.issuer.url, gpu_sampler=sampling))
        async with site.running():
            yield site


def usage(site: Site) -> list[dict[str, Any]]:
    """`edged usage` by queue."""
    command = [sys.executable, "-m", "edged", "usage", "--config", str(site.file)]
    done = subprocess.run(
        [*command, "--by", "queue", "--format", "json"], capture_output=True, check=True, timeout=30
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@pytest.mark.slurm
@pytest.mark.root
@pytest.mark.asyncio(loop_scope="module")
async def test_usage_tells_a_busy_job_from_an_idle_one(site: Site) -> None:
    wanted = {"gpus": {"kind": "h200", "count": 2}}
    ratios: list[float] = []
    async with site.api() as api:
        for load in ("", "90 90"):  # idle, then busy: the sum of both is half of it
            body = {"script": f"#!/bin/sh\necho {load} >gpu-load\nsleep 4\n", "resources": wanted}
            job = (await api.call("POST", "/v1/jobs", body=body))["id"]
            view = await ended(api, job)
            assert view["state"] == "FINISHED", view
            async with asyncio.timeout(DEADLINE_S):
                while (row := _gpu_row(usage(site)))["jobs"] != len(ratios) + 1:
                    await asyncio.sleep(0.1)
            assert row["gpu_h"] > 0
            ratios.append(row["gpu_efficiency"])
    assert ratios[0] == 0.0
    assert 0.3 <= ratios[1] <= 0.6, ratios


def _gpu_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next((row for row in rows if row["queue"] == "gpu"), {"jobs": 0})
