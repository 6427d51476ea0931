"""Sites for the job tests: one on the local batch system, one on a real Slurm as two accounts."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import local_accounts
from tests.support.site import Site, queue
from tests.support.slurm import SlurmTestbed, missing

__all__ = ["local_site", "slurm", "slurm_site"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local_site() -> AsyncIterator[Site]:
    """Self mode, local batch system."""
    with tempfile.TemporaryDirectory(prefix="edged-site-") as root:
        async with Site(Path(root), jobs=local_jobs(Path(root))).running() as site:
            yield site


def local_jobs(root: Path, **more: Any) -> dict[str, Any]:
    """[jobs] on the local batch system."""
    return {
        "listen": ["127.0.0.1:0"],
        "batch": "local",
        "sessions": str(root / "sessions"),
        "poll_s": 0.3,
        "queue": [queue("short", max_walltime_s=600)],
        "software": [{"name": "hello", "version": "1", "init": "export HELLO=world"}],
        **more,
    }


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmTestbed]:
    """A real Slurm for one module."""
    if why := missing():
        pytest.skip(why)
    with SlurmTestbed() as testbed:
        yield testbed


def slurm_settings(root: Path, slurm: SlurmTestbed, issuer: str, **more: Any) -> dict[str, Any]:
    """Sections of a site with two VOs on a real Slurm, as accounts cmsprd and atlprd."""
    local_accounts.ensure()
    return {
        "accounts": {"mode": "accountd", "minimum_uid": 1000},
        "mapping": [
            {
                "issuer": issuer,
                "groups": ["/atlas"],
                "account": "atlprd",
                "class": "production",
                "vo": "atlas",
            },
            {"issuer": issuer, "groups": ["/cms"], "account": "cmsprd", "class": "production"},
        ],
        "jobs": {
            "listen": ["127.0.0.1:0"],
            "batch": "slurm",
            "sessions": str(root / "sessions"),
            "slurm_conf": slurm.environment["SLURM_CONF"],
            "poll_s": 0.5,
            "settle_s": 6,
            "stuck_s": 20,
            "client_deadline_s": 12,
            "queue": [queue("cpu"), queue("gpu", gpus=[{"kind": "h200"}])],
            **more,
        },
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slurm_site(slurm: SlurmTestbed) -> AsyncIterator[Site]:
    """accountd mode, real Slurm."""
    with tempfile.TemporaryDirectory(prefix="edged-site-") as root:
        site = Site(Path(root))
        site.sections.update(slurm_settings(Path(root), slurm, site.issuer.url))
        async with site.running():
            yield site
