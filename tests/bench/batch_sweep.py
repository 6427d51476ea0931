"""What it costs to follow N queued jobs: one squeue, and reading only what changed.

    python -m tests.bench.batch_sweep [N]

Runs a real Slurm with N held jobs and prints, per sweep, the CPU time of squeue alone (the peer: what any
gateway pays) and of all our work on its answer, for an unchanged queue and for the first sweep.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from services.jobs.batch.slurm.driver import DRIVER
from tests.real.batch.subjects import subject
from tests.support.local_accounts import CMSPRD
from tests.support.slurm import SlurmTestbed

ROUNDS = 15


def main(count: int) -> None:
    with SlurmTestbed(accounting=False, max_jobs=2 * count + 10, gpu_nodes=0) as slurm:
        fill(slurm, count)
        with subject(DRIVER, CMSPRD.name, slurm.environment) as cms:
            asyncio.run(measure(cms.system, slurm, count))


def fill(slurm: SlurmTestbed, count: int) -> None:
    """Held jobs, each with an id of its own (tasks of a waiting array would share one): some 100 a second."""

    def submit(number: int) -> None:
        name = f"--job-name=edged-bench{number}"
        slurm.run("sbatch", "--hold", name, "--output=/dev/null", "--wrap=true", user=CMSPRD.name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, range(count)))


async def measure(system: object, slurm: SlurmTestbed, count: int) -> None:
    from services.jobs.batch.slurm.driver import Slurm

    assert isinstance(system, Slurm)
    first = await system.sweep(b"")
    started = time.process_time()
    seen = len(first.since(None).changed)
    first_ms = (time.process_time() - started) * 1e3
    ours = []
    for _ in range(ROUNDS):
        started = time.process_time()
        sweep = await system.sweep(b"")
        changes = sweep.since(first)
        ours.append((time.process_time() - started) * 1e3)
        assert not changes.changed
    alone = [squeue_ms(slurm) for _ in range(ROUNDS)]
    us, them = statistics.median(ours), statistics.median(alone)
    print(f"{count} queued, {seen} read on the first sweep")
    print(f"squeue alone           {them:7.1f} ms CPU a sweep")
    print(f"ours, nothing changed  {us:7.1f} ms CPU a sweep beside it: ratio {us / them:.2f}")
    print(f"ours, all is new       {first_ms:7.1f} ms CPU once")
    print(f"every 3 s: {(us + them) / 30:.2f} % of a core, squeue and ours together")
    print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def squeue_ms(slurm: SlurmTestbed) -> float:
    before = os.times()
    slurm.run("squeue", "-h", "-r", "-a", "-t", "all", f"--user={CMSPRD.name}", "-o", "%A|%j|%T|%V|%N|%r")
    after = os.times()
    return (after.children_user + after.children_system - before.children_user - before.children_system) * 1e3


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10000)
