"""The slurm driver while Slurm fails: nothing is doubled, nothing is believed that is not so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.config.jobs import Jobs
from edged.errors import Busy, Unavailable, UnknownOutcome
from services.jobs.batch.conformance import Subject
from services.jobs.batch.protocol import BatchState, Cause
from services.jobs.batch.slurm.driver import DRIVER
from tests.real.batch.subjects import subject
from tests.support.local_accounts import ATLPRD, CMSPRD, PILOT1
from tests.support.slurm import SlurmTestbed, missing

pytestmark = [pytest.mark.slurm, pytest.mark.root]

BASE: dict[str, Any] = {"partition": "cpu", "memory_per_node": 100 << 20, "walltime_s": 600}
# sbatch gives up after 3 s instead of 10 s; otherwise all is as in production
IMPATIENT: dict[str, Any] = {"message_timeout_s": 3, "slurmd_timeout_s": 5, "gpu_nodes": 0}


@pytest.fixture(scope="module")
def fragile() -> Iterator[SlurmTestbed]:
    """A Slurm of this module's own, to be broken."""
    if why := missing():
        pytest.skip(why)
    with SlurmTestbed(**IMPATIENT) as testbed:
        yield testbed


@pytest.fixture(scope="module")
def cms(fragile: SlurmTestbed) -> Iterator[Subject]:
    with subject(DRIVER, CMSPRD.name, fragile.environment, base=BASE) as found:
        asyncio.run(found.system.site(b""))  # the cluster's name is known before the trouble begins
        yield found


async def submit_in_trouble(cms: Subject, text: str = "echo ran >>runs") -> str:
    """Submit, expecting not to know the outcome. The job's id."""
    job = cms.job()
    with pytest.raises(UnknownOutcome):
        await cms.shell(text, job)
    return job


async def settled(cms: Subject, job: str, since: float) -> list[Any]:
    """What ``find`` answers, once it has answered the same for the time accounting may lag."""
    seen: list[Any] = []
    stands_since = time.monotonic()
    while time.monotonic() - stands_since < 5:
        found = list(await cms.system.find(b"", job, since))
        if [one.ref for one in found] != seen:
            seen, stands_since = [one.ref for one in found], time.monotonic()
        if found:
            return found
        await asyncio.sleep(0.3)
    return []


async def test_a_frozen_controller_takes_the_job_and_it_is_found(fragile: SlurmTestbed, cms: Subject) -> None:
    since = time.time() - 1
    fragile.freeze_controller()
    try:
        job = await submit_in_trouble(cms)
        with pytest.raises(Unavailable):
            await cms.system.find(b"", job, since)
    finally:
        fragile.thaw_controller()
    found = await settled(cms, job, since)
    assert len(found) == 1
    done = await cms.final(found[0].ref)
    assert done.state is BatchState.FINISHED
    assert cms.output(found[0].ref, "runs") == "ran\n"


async def test_a_controller_that_is_down_has_no_job(fragile: SlurmTestbed, cms: Subject) -> None:
    since = time.time() - 1
    ended = await cms.shell("exit 3")
    await cms.final(ended)
    fragile.stop_controller()
    try:
        job = await submit_in_trouble(cms)
        facts = await cms.system.finals(b"", [ended])
        with pytest.raises(Unavailable):
            await cms.system.sweep(b"")
    finally:
        fragile.start_controller()
    assert [(one.state, one.exit_code) for one in facts] == [(BatchState.FAILED, 3)], "accounting goes on"
    assert await settled(cms, job, since) == []


async def test_acknowledged_jobs_can_be_lost_and_their_ids_come_back(
    fragile: SlurmTestbed, cms: Subject
) -> None:
    since = time.time() - 1
    refs = [await cms.shell("sleep 30", nodes=2, tasks=2, exclusive=True) for _ in range(3)]
    fragile.kill_controller()
    fragile.start_controller()
    kept = [await settled(cms, ref.name.removeprefix("edged-"), since) for ref in refs]
    lost = [ref for ref, found in zip(refs, kept, strict=True) if not found]
    others = [await cms.shell("exit 0") for _ in lost]  # get the ids of the lost, or near
    for ref in lost:
        assert not await cms.system.finals(b"", [ref]), "another job's end is not this one's"
    for ref in refs:
        await cms.system.cancel(b"", ref)
    for ref in others:
        assert (await cms.final(ref)).state is BatchState.FINISHED, "cancelling a lost job hits no other"


async def test_a_lost_node_fails_the_job_but_it_may_still_run(fragile: SlurmTestbed, cms: Subject) -> None:
    ref = await cms.shell("sleep 60", tasks=16)
    running = await cms.seen(ref, BatchState.RUNNING)
    node = running.nodes[0]
    fragile.kill_node(node)
    try:
        done = await cms.final(ref)
    finally:
        fragile.start_node(node)
    assert (done.state, done.cause, done.raw_state) == (BatchState.FAILED, Cause.SITE, "NODE_FAIL")
    assert done.may_still_run


async def test_too_much_memory_ends_the_job(cms: Subject) -> None:
    """Without cgroups Slurm kills, and its accounting tells of a signal only.

    The shell has no child at its end: Slurm kills one process after the other, and a shell whose child went
    first may still say so by an exit code of its own.
    """
    grow = "a=$(head -c 300000000 /dev/zero | tr '\\0' a); while :; do :; done"
    ref = await cms.shell(grow, memory_per_node=64 << 20)
    done = await cms.final(ref)
    assert (done.state, done.cause, done.signal) == (BatchState.FAILED, Cause.SIGNAL, 9)


async def test_an_administrators_cancel_is_told_from_the_accounts(
    fragile: SlurmTestbed, cms: Subject
) -> None:
    ref = await cms.shell("sleep 60")
    await cms.seen(ref, BatchState.RUNNING)
    fragile.output("scancel", ref.id)
    done = await cms.final(ref)
    assert (done.state, done.cause, done.cancelled_by) == (BatchState.KILLED, Cause.CANCELLED, 0)


async def test_a_held_job_is_held_until_released(fragile: SlurmTestbed, cms: Subject) -> None:
    blocker = await cms.shell("sleep 60", nodes=2, tasks=2, exclusive=True)
    await cms.seen(blocker, BatchState.RUNNING)
    ref = await cms.shell("exit 0")
    fragile.hold(ref.id)
    held = await cms.seen(ref, BatchState.HELD)
    assert held.reason == "JobHeldAdmin"
    await cms.system.cancel(b"", blocker)
    fragile.release(ref.id)
    assert (await cms.final(ref)).state is BatchState.FINISHED


async def test_a_job_cancelled_while_held_is_found_by_name(fragile: SlurmTestbed, cms: Subject) -> None:
    """sacct lists by name only what was eligible to run, unless asked by state."""
    since = time.time() - 1
    fragile.output("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    try:
        ref = await cms.shell("exit 0")
        fragile.hold(ref.id)
        await cms.system.cancel(b"", ref)
        assert (await cms.final(ref)).state is BatchState.KILLED
    finally:
        fragile.output("scontrol", "update", "PartitionName=cpu", "State=UP")
    found = await cms.system.find(b"", ref.name.removeprefix("edged-"), since)
    assert [(one.ref.id, one.state) for one in found] == [(ref.id, BatchState.KILLED)]


async def test_a_walltime_above_the_partitions_is_accepted_and_stuck(cms: Subject) -> None:
    ref = await cms.shell("exit 0", walltime_s=100 * 86400)
    waiting = await cms.seen(ref, BatchState.QUEUED)
    while not waiting.reason:  # the scheduler has not looked at it yet
        waiting = await cms.seen(ref, BatchState.QUEUED)
    assert waiting.reason in ("PartitionTimeLimit", "PartitionConfig") and waiting.stuck
    await cms.system.cancel(b"", ref)


async def test_a_session_that_is_gone_cannot_start(cms: Subject) -> None:
    ref = (await cms.system.submit(b"", cms.submission(cms.job()))).ref
    done = await cms.final(ref)
    assert (done.state, done.cause, done.exit_code) == (BatchState.FAILED, Cause.START, None)


async def test_the_default_association_may_not_submit_but_the_queues_may(fragile: SlurmTestbed) -> None:
    with subject(DRIVER, PILOT1.name, fragile.environment, base=BASE) as pilot:
        with pytest.raises(Busy) as refusal:
            await pilot.shell("exit 0")
        assert "SubmitJobs" in refusal.value.message
        ref = await pilot.shell("exit 0", slurm_account="ops")
        done = await pilot.final(ref)
    assert (done.state, done.account) == (BatchState.FINISHED, "ops")


async def test_nobody_else_can_write_lines_of_our_jobs(fragile: SlurmTestbed, cms: Subject) -> None:
    """A name with a newline prints as a line of whatever job it likes."""
    ref = await cms.shell("sleep 60")
    await cms.seen(ref, BatchState.RUNNING)
    forged = f"x\n{ref.id}|{ref.name}|COMPLETED|1795223958||None"
    done = fragile.run(
        "sbatch", "--parsable", "--hold", "--output=/dev/null", f"--job-name={forged}", "--wrap=true",
        user=ATLPRD.name,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    states = {job.state for job in (await cms.system.sweep(b"")).jobs() if job.ref.id == ref.id}
    assert states == {BatchState.RUNNING}
    found = await cms.system.find(b"", ref.name.removeprefix("edged-"), time.time() - 60)
    assert [job.state for job in found] == [BatchState.RUNNING]
    await cms.system.cancel(b"", ref)
    fragile.output("scancel", done.stdout.strip())


async def test_a_full_queue_is_an_unknown_outcome_without_a_job() -> None:
    """sbatch waits and retries by itself; killed at our deadline, only looking tells what happened."""
    with (
        SlurmTestbed(accounting=False, max_jobs=3, **IMPATIENT) as small,
        subject(DRIVER, CMSPRD.name, small.environment, Jobs(client_deadline_s=11.5), base=BASE) as cms,
    ):
        jobs = [await cms.shell("sleep 60", nodes=2, exclusive=True, tasks=2) for _ in range(2)]
        late = cms.job()
        with pytest.raises((UnknownOutcome, Busy)):
            await cms.shell("exit 0", late)
        assert await cms.system.find(b"", late, 0.0) == []
        assert {
            job.ref.id for job in await cms.system.find(b"", jobs[0].name.removeprefix("edged-"), 0.0)
        } == {jobs[0].id}


@pytest.mark.skipif(not Path("/sys/fs/cgroup/memory").is_dir(), reason="no memory cgroup on this machine")
async def test_memory_enforced_by_cgroups_is_told_as_memory() -> None:
    with (
        SlurmTestbed(accounting=False, cgroup=True, **IMPATIENT) as caged,
        subject(DRIVER, CMSPRD.name, caged.environment, base=BASE) as cms,
    ):
        eat = "a=$(head -c 300000000 /dev/zero | tr '\\0' a); sleep 1"
        done = await cms.final(await cms.shell(eat, memory_per_node=64 << 20))
    assert (done.state, done.cause) == (BatchState.FAILED, Cause.MEMORY)
