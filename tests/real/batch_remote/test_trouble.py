"""Both ways to Slurm while Slurm itself and slurmrestd fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from edged.errors import Busy, Unavailable, UnknownOutcome
from services.jobs.batch.protocol import BatchRef, BatchState, Cause
from services.jobs.batch.slurmrest.rest import Rest
from tests.real.batch_remote.reaching import Far, RemoteSubject, far_side, rest_cluster, rest_subject, settled
from tests.support import slurm as testbed
from tests.support import sshd
from tests.support.local_accounts import CMSPRD
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.waiting import until_async

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

# the clients give up after 3 s instead of 10 s; otherwise all is as in production
IMPATIENT: dict[str, Any] = {"message_timeout_s": 3, "slurmd_timeout_s": 5, "gpu_nodes": 0, "rest": True}


@pytest.fixture(scope="module")
def fragile() -> Iterator[SlurmTestbed]:
    """A Slurm of this module's own, to be broken."""
    if why := testbed.missing() or sshd.missing():
        pytest.skip(why)
    with SlurmTestbed(**IMPATIENT) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def far(fragile: SlurmTestbed) -> AsyncIterator[Far]:
    async with far_side(fragile) as found:
        yield found


async def test_a_frozen_controller_takes_the_job_and_it_is_found(far: Far) -> None:
    since, ways = time.time() - 1, (far.ssh, far.rest)
    jobs = [way.job() for way in ways]

    async def asked(way: RemoteSubject, job: str) -> None:
        with pytest.raises(UnknownOutcome):
            await way.shell("echo ran >>runs", job)
        with pytest.raises(Unavailable):
            await way.system.find(way.grant, job, since)

    far.slurm.freeze_controller()
    try:
        await asyncio.gather(*map(asked, ways, jobs))
    finally:
        far.slurm.thaw_controller()
    for way, job in zip(ways, jobs, strict=True):
        found = await settled(way, job, since)
        assert len(found) == 1
        assert (await way.final(found[0].ref)).state is BatchState.FINISHED
        assert way.output(found[0].ref, "runs") == "ran\n"


async def test_a_controller_that_is_down_has_no_job(far: Far) -> None:
    since, ways = time.time() - 1, (far.ssh, far.rest)
    jobs = [way.job() for way in ways]

    async def asked(way: RemoteSubject, job: str) -> None:
        with pytest.raises(UnknownOutcome):
            await way.shell("echo ran >>runs", job)
        with pytest.raises(Unavailable):
            await way.system.sweep(way.grant)

    ended = [await way.shell("exit 3") for way in ways]
    for way, ref in zip(ways, ended, strict=True):
        await way.final(ref)
    far.slurm.stop_controller()
    try:
        await asyncio.gather(*map(asked, ways, jobs))
        facts = await far.ssh.system.finals(far.ssh.grant, ended[:1])
    finally:
        far.slurm.start_controller()
    assert [(one.state, one.exit_code) for one in facts] == [(BatchState.FAILED, 3)], "accounting goes on"
    assert await asyncio.gather(*(settled(way, job, since) for way, job in zip(ways, jobs, strict=True))) == [
        [],
        [],
    ]


async def test_acknowledged_jobs_can_be_lost_and_their_ids_come_back(far: Far) -> None:
    """kill -9 of slurmctld takes what it acknowledged last; whoever gets a lost id is another job."""
    since, ways = time.time() - 1, (far.ssh, far.rest)
    submitted = [(way, await way.shell("sleep 30", nodes=2, tasks=2, exclusive=True)) for way in ways * 2]
    far.slurm.kill_controller()
    far.slurm.start_controller()
    kept = await asyncio.gather(*(settled(way, _job(ref), since) for way, ref in submitted))
    lost = [pair for pair, found in zip(submitted, kept, strict=True) if not found]
    others = [
        (way, await way.shell("exit 0")) for way in ways for _ in lost
    ]  # get the ids of the lost, or near
    for way, ref in lost:
        assert not await way.system.finals(way.grant, [ref]), "another job's end is not this one's"
    for way, ref in submitted:
        await way.system.cancel(way.grant, ref)
    for way, ref in others:
        assert (await way.final(ref)).state is BatchState.FINISHED, "cancelling a lost job hits no other"


async def test_a_lost_node_fails_the_job_but_it_may_still_run(far: Far) -> None:
    """Both ways tell alike: the site's fault, and the processes may be alive."""
    refs = [await way.shell("sleep 60", tasks=8) for way in (far.ssh, far.rest)]
    running = [
        await way.seen(ref, BatchState.RUNNING) for way, ref in zip((far.ssh, far.rest), refs, strict=True)
    ]
    nodes = {job.nodes[0] for job in running}
    for node in nodes:
        far.slurm.kill_node(node)
    try:
        ends = await asyncio.gather(far.ssh.final(refs[0]), far.rest.final(refs[1]))
    finally:
        for node in nodes:
            far.slurm.start_node(node)
    assert {(end.state, end.cause, end.raw_state) for end in ends} == {
        (BatchState.FAILED, Cause.SITE, "NODE_FAIL")
    }
    assert all(end.may_still_run for end in ends)


async def test_a_job_is_taken_while_all_nodes_are_down(far: Far) -> None:
    """slurmrestd names an error beside the job's id: the job is there all the same, and will run."""
    nodes = ("c1", "c2")
    for node in nodes:
        far.slurm.kill_node(node)  # a living slurmd would register and bring its node back
    far.slurm.output("scontrol", "update", f"NodeName={','.join(nodes)}", "State=DOWN", "Reason=test")
    try:
        submitted = [(way, await way.shell("exit 0")) for way in (far.ssh, far.rest)]
        for way, ref in submitted:
            assert not (await way.seen(ref, BatchState.QUEUED)).stuck
    finally:
        for node in nodes:
            far.slurm.start_node(node)
    for way, ref in submitted:
        assert (await way.final(ref)).state is BatchState.FINISHED


def _job(ref: BatchRef) -> str:
    return ref.name.removeprefix("edged-")


async def test_slurmrestd_restarts(far: Far) -> None:
    far.slurm.rest.kill()
    with pytest.raises((Busy, UnknownOutcome)):  # over a kept connection nobody knows
        await far.rest.shell("exit 0")
    with pytest.raises(Busy):  # nobody listens: nothing was sent
        await far.rest.shell("exit 0")
    with pytest.raises(Unavailable):
        await far.rest.system.sweep(far.rest.grant)
    far.slurm.start_rest()
    ref = await far.rest.shell("exit 0")
    assert (await far.rest.final(ref)).state is BatchState.FINISHED


async def test_an_upgraded_slurmrestd_is_asked_anew_what_it_speaks(far: Far) -> None:
    """The version that was found is gone: one listing fails, the next goes by another version."""
    rest = far.rest.far.service
    assert isinstance(rest, Rest) and await rest.version(far.rest.grant) == "v0.0.38"
    rest._version = "v0.0.30"  # as if that had been there before the upgrade
    with pytest.raises(Unavailable):
        await far.rest.system.sweep(far.rest.grant)
    await far.rest.system.sweep(far.rest.grant)
    assert await rest.version(far.rest.grant) == "v0.0.38"


async def test_a_frozen_slurmrestd_is_an_unknown_outcome(far: Far) -> None:
    config = {"client_deadline_s": 11.5}
    cluster = rest_cluster(far.scratch, far.slurm)
    async with rest_subject(cluster, far.signing, CMSPRD.name, far.scratch, config=config) as way:
        await way.system.site(way.grant)
        job, since = way.job(), time.time() - 1
        far.slurm.rest.freeze()
        try:
            with pytest.raises(UnknownOutcome):
                await way.shell("echo ran >>runs", job)
        finally:
            far.slurm.rest.thaw()
        found = await settled(way, job, since)
        assert len(found) == 1, "it was in the socket's queue and ran later"
        assert (await way.final(found[0].ref)).state is BatchState.FINISHED


async def test_tokens_that_end_are_replaced(far: Far) -> None:
    """An expired token is a 500 of many meanings; the next question brings a new one."""
    short = Signing(life_s=1, jwt_key=far.slurm.layout.jwt_key)
    cluster = rest_cluster(far.scratch, far.slurm, token_s=30.0)
    async with rest_subject(cluster, short, CMSPRD.name, far.scratch) as way:
        for _ in range(3):
            await way.system.sweep(way.grant)
            await asyncio.sleep(1.1)  # the life of a token
        assert short.signed >= 3
        key = far.scratch.root / "another.key"
        key.write_bytes(bytes(range(32)))
        foreign = Signing(jwt_key=key)
        async with rest_subject(cluster, foreign, CMSPRD.name, far.scratch) as wrong:
            with pytest.raises(Unavailable):
                await wrong.system.sweep(wrong.grant)
            with pytest.raises((UnknownOutcome, Busy)):
                await wrong.shell("exit 0")


async def test_nothing_has_changed_costs_nothing(far: Far) -> None:
    before = await far.rest.system.sweep(far.rest.grant)
    same = await until_async(lambda: _same(far.rest, before.records), "a quiet moment", 20)
    assert same


async def _same(way: RemoteSubject, _: frozenset[bytes]) -> bool:
    first = await way.system.sweep(way.grant)
    return (await way.system.sweep(way.grant)).records is first.records
