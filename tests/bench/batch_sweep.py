"""What it costs to follow N queued jobs: one squeue, and reading only what changed.

    python -m tests.bench.batch_sweep [N]

Runs a real Slurm with N held jobs and prints the CPU time of a sweep by squeue alone (the peer: what any
gateway pays) and by all our processes together, for a queue in which nothing changed.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from edged.config.jobs import Jobs
from services.jobs.batch.protocol import BatchSystem
from services.jobs.batch.slurm.clients import LISTING
from services.jobs.batch.slurm.driver import DRIVER
from tests.support.batch_worker import BatchWorker
from tests.support.local_accounts import CMSPRD
from tests.support.slurm import SlurmTestbed

ROUNDS = 15


def main(count: int) -> None:
    with SlurmTestbed(accounting=False, max_jobs=2 * count + 10, gpu_nodes=0) as slurm:
        fill(slurm, count)
        worker = BatchWorker(CMSPRD.name, slurm.root / "bench", slurm.environment, DRIVER.verbs)
        try:
            asyncio.run(measure(DRIVER.create(Jobs(), worker), worker, slurm, count))
        finally:
            worker.close()


def fill(slurm: SlurmTestbed, count: int) -> None:
    """Held jobs, each with an id of its own (tasks of a waiting array would share one): some 100 a second."""

    def submit(number: int) -> None:
        name = f"--job-name=edged-bench{number}"
        slurm.run("sbatch", "--hold", name, "--output=/dev/null", "--wrap=true", user=CMSPRD.name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, range(count)))


async def measure(system: BatchSystem, worker: BatchWorker, slurm: SlurmTestbed, count: int) -> None:
    first = await system.sweep(b"")
    started = time.process_time()
    seen = len(first.since(None).changed)
    first_ms = (time.process_time() - started) * 1e3
    ours = time.process_time() + worker.cpu_s()
    for _ in range(ROUNDS):
        sweep = await system.sweep(b"")
        assert not sweep.since(first).changed
    ours_ms = (time.process_time() + worker.cpu_s() - ours) * 1e3 / ROUNDS
    alone_ms = sum(squeue_ms(slurm) for _ in range(ROUNDS)) / ROUNDS
    print(f"{count} queued, {seen} read on the first sweep")
    print(f"squeue alone                      {alone_ms:7.1f} ms CPU a sweep")
    print(f"front, worker and squeue together {ours_ms:7.1f} ms CPU a sweep: ratio {ours_ms / alone_ms:.2f}")
    print(f"parsing all as new                {first_ms:7.1f} ms CPU once")
    print(f"every 3 s: {ours_ms / 30:.2f} % of a core")
    print(f"memory of the front {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def squeue_ms(slurm: SlurmTestbed) -> float:
    slurm.environment.update(LISTING)
    before = os.times()
    slurm.run("squeue", "-h", "-r", "-a", "-t", "all", f"--user={CMSPRD.name}", "-o", "%A|%j|%T|%V|%N|%r")
    after = os.times()
    return (after.children_user + after.children_system - before.children_user - before.children_system) * 1e3


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10000)
