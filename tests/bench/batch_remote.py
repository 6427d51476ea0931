"""What it costs to reach Slurm from outside, beside the clients on the spot.

    python -m tests.bench.batch_remote [JOBS TO FOLLOW]

One real Slurm with slurmrestd, one real sshd with its default MaxSessions. Rates on a shared machine lie: read
the ratios of one run, and the CPU time. Bars: 200 reads without an error; SSH ≥ .9 of local one at a time and
≥ 2 at eight; slurmrest ≥ 4 times sbatch; 10,000 jobs followed in ≤ 3 % of a core at each end; a certificate in
≤ 1 ms.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from edged import sshca
from edged.config.jobs import Jobs
from edged.identity.words import Action
from services.jobs.batch.conformance import Subject
from services.jobs.batch.script import Payload, session_files
from services.jobs.batch.slurm.driver import DRIVER as LOCAL
from services.jobs.follower import pause_s
from tests.real.batch_remote.reaching import Scratch, rest_cluster, rest_subject, ssh_cluster, ssh_subject
from tests.support.batch_worker import BatchWorker
from tests.support.local_accounts import CMSPRD
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.sshd import Sshd

SUBMISSIONS = 60
READS = 200
ROUNDS = 10


async def main(count: int) -> None:
    await certificates()
    with SlurmTestbed(rest=True, gpu_nodes=0, max_jobs=2 * count + 2000) as slurm:
        signing, scratch = Signing(jwt_key=slurm.layout.jwt_key, life_s=3600), Scratch()
        with Sshd(signing.authority, environment=slurm.environment) as node:
            worker = BatchWorker(CMSPRD.name, scratch.root / "local", slurm.environment, LOCAL.verbs)
            (scratch.root / "local").chmod(0o755)
            local = Subject(LOCAL.create(Jobs(), worker), worker.put, lambda *_: None, CMSPRD.uid)
            async with AsyncExitStack() as stack:
                ssh = await stack.enter_async_context(
                    ssh_subject(ssh_cluster(scratch, node), signing, CMSPRD.name, scratch)
                )
                rest = await stack.enter_async_context(
                    rest_subject(rest_cluster(scratch, slurm), signing, CMSPRD.name, scratch)
                )
                slurm.output("scontrol", "update", "PartitionName=cpu", "State=DOWN")  # jobs wait
                await submissions(local, ssh, rest)
                await reads(ssh, node)
                slurm.output("scancel", f"--user={CMSPRD.name}")
                await fill(rest, count)
                await following("ssh", ssh, node, count)
                await following("slurmrest", rest, None, count)
            worker.close()
        scratch.remove()


async def certificates() -> None:
    signing = Signing()
    key = sshca.authority_line(signing.key.public_key(), "x")
    grant = signing.grant(CMSPRD.name)
    started = time.process_time()
    for _ in range(500):
        await signing.ssh_certificate(grant, "x", key, Action.JOB_POLL)
    print(
        f"certificate signed                 {(time.process_time() - started) * 2:6.2f} ms CPU   (bar 1 ms)"
    )


async def submissions(local: Subject, ssh: Subject, rest: Subject) -> None:
    for width, bars in ((1, (0.9, 4.0)), (8, (2.0, 4.0))):
        rates = []
        for subject in (local, ssh, rest):
            await rate(subject, 4, width)  # connections, versions
            rates.append(await rate(subject, SUBMISSIONS, width))
        base = rates[0]
        print(
            f"submissions, {width} at once             local clients {base:5.0f}/s   "
            f"ssh {rates[1]:5.0f}/s = {rates[1] / base:.2f} (bar {bars[0]})   "
            f"slurmrest {rates[2]:5.0f}/s = {rates[2] / base:.2f} (bar {bars[1]})"
        )


async def rate(subject: Subject, count: int, width: int) -> float:
    """Submissions a second, their files already there."""
    jobs = [subject.job() for _ in range(count)]
    for job in jobs:
        subject.put(job, session_files(job, Payload(executable="true")))
    asked = {"partition": "cpu", "memory_per_node": 100 << 20, "walltime_s": 600}

    async def one(job: str) -> None:
        subject.base = asked
        await subject.system.submit(subject.grant, subject.submission(job))

    return await paced([lambda job=job: one(job) for job in jobs], width)  # type: ignore[misc]


async def paced(work: list[Callable[[], Awaitable[None]]], width: int) -> float:
    turn = asyncio.Semaphore(width)

    async def guarded(one: Callable[[], Awaitable[None]]) -> None:
        async with turn:
            await one()

    started = time.perf_counter()
    await asyncio.gather(*(guarded(one) for one in work))
    return len(work) / (time.perf_counter() - started)


async def reads(ssh: Subject, node: Sshd) -> None:
    """Status reads of single jobs, each a squeue and two sacct, as FirecREST's GET job is."""
    job = ssh.job()
    errors = 0

    async def read() -> None:
        nonlocal errors
        try:
            await ssh.system.find(ssh.grant, job, time.time() - 60)
        except Exception as error:
            errors += 1
            print(error)

    logins = node.connections()
    speed = await paced([read] * READS, 16)
    print(
        f"{READS} reads, 16 at once, MaxSessions 10: {errors} errors, {speed:.0f}/s, "
        f"{node.connections() - logins} more connections   (FirecREST v2: 30 of 80 failed)"
    )


async def fill(rest: Subject, count: int) -> None:
    """Waiting jobs, the quickest way there is."""
    asked = {"partition": "cpu", "memory_per_node": 100 << 20, "walltime_s": 600}

    async def one() -> None:
        await rest.system.submit(rest.grant, rest.submission(rest.job(), **asked))

    await paced([one] * count, 8)
    while len((await rest.system.sweep(rest.grant)).records) < count:
        await asyncio.sleep(1)


async def following(way: str, subject: Subject, node: Sshd | None, count: int) -> None:
    """CPU of a sweep at both ends, nothing having changed."""
    before = await subject.system.sweep(subject.grant)
    here, there, started = time.process_time(), _cpu(node), time.perf_counter()
    for _ in range(ROUNDS):
        after = await subject.system.sweep(subject.grant)
        after.since(before)
    here_ms = (time.process_time() - here) * 1e3 / ROUNDS
    there_ms = (_cpu(node) - there) * 1e3 / ROUNDS
    took_s = (time.perf_counter() - started) / ROUNDS
    period_s = took_s + pause_s(Jobs().poll_s, took_s)  # as the engine's follower does it
    end = f"{there_ms:6.1f} ms there = {there_ms / period_s / 10:.2f} %" if node else "far end not counted"
    print(
        f"{count} jobs followed by {way:9}  {here_ms:6.1f} ms CPU here = {here_ms / period_s / 10:.2f} % of a core, "
        f"{end}   (bar 3 %)   a sweep takes {took_s * 1e3:.0f} ms, every {period_s:.1f} s"
    )


def _cpu(node: Sshd | None) -> float:
    """CPU seconds of the sshd sessions, the helper below them and the clients it ran."""
    if node is None:
        return 0.0
    pids = set(node.sessions())
    while more := {int(p) for pid in pids for p in _children(pid)} - pids:
        pids |= more
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += (task / "children").read_text().split()
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # ends Slurm and sshd too
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10000))
