"""The published suite by every way, on real Slurms of several years: the host's own, and those of other releases.

Each Slurm runs whole (slurmctld, slurmd, slurmdbd, slurmrestd, sshd, clients) and has a test file of its own, so that
they run side by side. The ways are the clients by SSH, and slurmrestd by each version of its API.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from edged.errors import Busy, Unavailable, UnknownOutcome
from edged.identity.words import Action
from services.jobs.batch.conformance import Conformance
from services.jobs.batch.protocol import BatchRef
from services.jobs.batch.slurmrest import shapes
from services.jobs.batch.slurmrest.wire import Wire
from tests.real.batch_remote.reaching import (
    KNOWN,
    RemoteSubject,
    Scratch,
    rest_cluster,
    rest_subject,
    ssh_cluster,
    ssh_subject,
)
from tests.support import slurm as testbed
from tests.support import slurm_release, sshd
from tests.support.local_accounts import CMSPRD
from tests.support.rootfs import CannotBuild
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.slurm_release import Release
from tests.support.sshd import Sshd

AT_ONCE = 12
WAITS_ONLY = "test_the_time_limit_ends_a_job"
# the first leaves no room for the others; the second needs quiet
ALONE = (
    "test_a_waiting_job_is_cancelled_and_never_runs",
    "test_a_job_stays_in_sight_while_nothing_changes",
)


async def suite_by_every_way(whose: str) -> None:
    """The suite on the host's own Slurm (``host``), or on that of a Debian release.

    All tests at once, for Slurm's own waits overlap; then those that need the cluster for themselves. Meanwhile a job
    runs into its time limit, which Slurm counts in minutes.
    """
    with SlurmTestbed(release=_release(whose), rest=True) as slurm:
        versions = await _spoken(slurm)
        assert versions, "its slurmrestd speaks no version that we know"
        async with _ways(slurm, versions) as ways:
            names = [name for name in vars(Conformance) if name.startswith("test_")]
            turn = asyncio.Semaphore(AT_ONCE)
            limited = asyncio.ensure_future(_together(ways, [WAITS_ONLY], asyncio.Semaphore(len(ways))))
            found = await _together(ways, [name for name in names if name not in (*ALONE, WAITS_ONLY)], turn)
            for name in ALONE:
                found |= await _together(ways, [name], turn)
            found |= await limited
            assert found == {}, found
            await _one_ways_job_is_found_by_the_others(ways)
            await _no_job_is_started_again(slurm, ways)
            await _a_foreign_token_opens_nothing(slurm, versions)


def _release(whose: str) -> Release | None:
    if why := testbed.missing() or sshd.missing():
        pytest.skip(why)
    if whose == "host":
        return None
    try:
        return slurm_release.release(whose)
    except CannotBuild as error:
        pytest.skip(f"NO OTHER SLURM CAN BE TRIED ON THIS MACHINE: {error}")


async def _spoken(slurm: SlurmTestbed) -> list[str]:
    """The versions of the API that both sides know."""
    signing = Signing(jwt_key=slurm.layout.jwt_key)
    token = await signing.slurm_token(signing.grant(CMSPRD.name), "any", Action.JOB_POLL)
    wire = Wire(f"unix:{slurm.layout.rest_socket}", None, limit=1, deadline_s=30)
    headers = {"X-SLURM-USER-NAME": token.account, "X-SLURM-USER-TOKEN": token.text}
    told = await wire.request("GET", "/openapi/v3", headers)
    wire.close()
    paths = list(json.loads(told.body)["paths"])
    return [
        version for version in shapes.KNOWN if any(path.startswith(f"/slurm/{version}/") for path in paths)
    ]


async def _together(
    ways: list[RemoteSubject], names: list[str], turn: asyncio.Semaphore
) -> dict[tuple[str, str], BaseException]:
    """What failed: (way, test) → why."""
    pairs = [(way, name) for name in names for way in ways]
    ends = await asyncio.gather(*(_tried(way, name, turn) for way, name in pairs))
    return {
        (way.system.name, name): end for (way, name), end in zip(pairs, ends, strict=True) if end is not None
    }


async def _tried(way: RemoteSubject, name: str, turn: asyncio.Semaphore) -> BaseException | None:
    test = getattr(Conformance(), name)
    try:
        async with turn:
            await test(way)
    except (Exception, pytest.fail.Exception) as error:
        return error
    return None


async def _one_ways_job_is_found_by_the_others(ways: list[RemoteSubject]) -> None:
    ref = await ways[0].shell("exit 0")
    for way in ways[1:]:
        found = await way.system.find(way.grant, ref.name.removeprefix("edged-"), 0.0)
        assert [one.ref.id for one in found] == [ref.id]
        assert BatchRef(found[0].ref.cluster, ref.id, 0.0, ref.name).same(found[0].ref)
    await ways[0].final(ref)


async def _no_job_is_started_again(slurm: SlurmTestbed, ways: list[RemoteSubject]) -> None:
    """What slurmctld itself has understood: a job whose node fails is not requeued, as its JobRequeue=1 would."""
    refs = [await way.shell("exit 0") for way in ways]
    shown = [slurm.output("scontrol", "show", "job", ref.id).split() for ref in refs]
    assert {way.system.name: "Requeue=0" in words for way, words in zip(ways, shown, strict=True)} == {
        way.system.name: True for way in ways
    }
    await asyncio.gather(*(way.final(ref) for way, ref in zip(ways, refs, strict=True)))


async def _a_foreign_token_opens_nothing(slurm: SlurmTestbed, versions: list[str]) -> None:
    """Signed by another key. slurmrestd says so by a 500, or even by a 200 without jobs."""
    scratch = Scratch()
    key = scratch.root / "another.key"
    key.write_bytes(bytes(range(32)))
    for version in versions:
        cluster = rest_cluster(scratch, slurm, name=version, api_version=version)
        async with rest_subject(cluster, Signing(jwt_key=key), CMSPRD.name, scratch) as wrong:
            with pytest.raises(Unavailable):
                await wrong.system.sweep(wrong.grant)
            with pytest.raises((UnknownOutcome, Busy)):
                await wrong.shell("exit 0")
    scratch.remove()


@asynccontextmanager
async def _ways(slurm: SlurmTestbed, versions: list[str]) -> AsyncIterator[list[RemoteSubject]]:
    """It counts in minutes, so the jobs for the time limit start now."""
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
