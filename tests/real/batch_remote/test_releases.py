"""The published suite against other Slurms than the host's: each version of slurmrestd's API, and the clients.

Every release runs whole (slurmctld, slurmd, slurmdbd, slurmrestd, sshd, clients) beside the host's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from services.jobs.batch.conformance import Conformance
from tests.real.batch_remote.reaching import (
    RemoteSubject,
    Scratch,
    rest_cluster,
    rest_subject,
    ssh_cluster,
    ssh_subject,
)
from tests.real.batch_remote.test_conformance import KNOWN
from tests.support import slurm as testbed
from tests.support import slurm_release, sshd
from tests.support.local_accounts import CMSPRD
from tests.support.rootfs import CannotBuild
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.slurm_release import Release
from tests.support.sshd import Sshd

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.timeout(400)]

# Debian's release → what its slurmrestd speaks. The last moves on: there only the newest known are asked for
RELEASES = {"trixie": ("v0.0.40", "v0.0.41", "v0.0.42"), "sid": ("v0.0.43", "v0.0.44", "v0.0.45")}
AT_ONCE = 12
# the first leaves no room for the others; the second needs quiet
ALONE = (
    "test_a_waiting_job_is_cancelled_and_never_runs",
    "test_a_job_stays_in_sight_while_nothing_changes",
)


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> Release:
    if why := testbed.missing() or sshd.missing():
        pytest.skip(why)
    try:
        return slurm_release.release(request.param)
    except CannotBuild as error:
        pytest.skip(f"LOUD: no other Slurm to try on this machine: {error}")


async def test_the_suite_by_every_way(release: Release) -> None:
    """All tests of the suite at once, by every version of the API and by SSH: Slurm's own waits overlap."""
    with SlurmTestbed(release=release, rest=True) as slurm:
        async with _ways(slurm, RELEASES[release.name]) as ways:
            names = [name for name in vars(Conformance) if name.startswith("test_")]
            turn = asyncio.Semaphore(AT_ONCE)
            tried = {
                (way.system.name, name): _tried(way, name, turn)
                for way in ways
                for name in names
                if name not in ALONE
            }
            found = dict(zip(tried, await asyncio.gather(*tried.values()), strict=True))
            for name in ALONE:
                ends = await asyncio.gather(*(_tried(way, name, turn) for way in ways))
                found |= {(way.system.name, name): end for way, end in zip(ways, ends, strict=True)}
    assert {where: error for where, error in found.items() if error is not None} == {}


async def _tried(way: RemoteSubject, name: str, turn: asyncio.Semaphore) -> BaseException | None:
    try:
        if name == "test_the_time_limit_ends_a_job":  # it only waits
            await getattr(Conformance(), name)(way)
        else:
            async with turn:
                await getattr(Conformance(), name)(way)
    except (Exception, pytest.fail.Exception) as error:
        return error
    return None


@asynccontextmanager
async def _ways(slurm: SlurmTestbed, versions: tuple[str, ...]) -> AsyncIterator[list[RemoteSubject]]:
    signing, scratch = Signing(jwt_key=slurm.layout.jwt_key), Scratch()
    with Sshd(signing.authority, environment=slurm.environment, release=slurm.software) as node:
        async with AsyncExitStack() as stack:
            ways = [
                await stack.enter_async_context(
                    ssh_subject(ssh_cluster(scratch, node), signing, CMSPRD.name, scratch, **KNOWN)
                )
            ]
            for version in versions:
                cluster = rest_cluster(scratch, slurm, name=version, api_version=version)
                subject = rest_subject(cluster, signing, CMSPRD.name, scratch, **KNOWN)
                ways.append(await stack.enter_async_context(subject))
            for way in ways:
                way.early = await way.shell("sleep 600", partition="gpu", walltime_s=60)
            yield ways
    scratch.remove()
