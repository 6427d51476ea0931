"""What following queued jobs costs, and when an end is seen: ``python -m tests.bench.jobs_follow [COUNT]``.

COUNT jobs (10,000) are queued on a real Slurm whose partition is down; then one minute of following at
the default poll is measured: CPU of all our processes, squeue included, and their memory. Then jobs that
end are timed from Slurm's own end to the moment the API tells it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.real.jobs.fixtures import slurm_settings
from tests.support.cpu import pss_bytes, tree, tree_seconds
from tests.support.site import Site, ended, reached
from tests.support.slurm import SlurmTestbed

MEASURED_S = 60.0
POLL_S = 3.0


async def fill(api: Any, count: int) -> None:
    """Submit and wait until all are in the batch system."""
    started = time.perf_counter()
    for _ in range(count // 100):
        body = {"jobs": [{"executable": "/bin/true", "queue": "cpu"}] * 100}
        answer = await api.call("POST", "/v1/jobs/bulk", body=body)
        assert all(outcome["status"] == 201 for outcome in answer["jobs"])
    accepted = time.perf_counter() - started
    while (await api.call("GET", "/v1/jobs", state="ACCEPTED,PREPARING,SUBMITTING", limit=1))["jobs"]:
        await asyncio.sleep(1)
    took = time.perf_counter() - started
    print(f"{count} jobs accepted in {accepted:.1f} s, in Slurm after {took:.1f} s ({count / took:.0f}/s)")


async def main(count: int) -> None:
    """Print the figures."""
    with (
        tempfile.TemporaryDirectory(prefix="edged-bench-") as root,
        SlurmTestbed(max_jobs=count + 100) as slurm,
    ):
        site = Site(Path(root))
        site.sections.update(
            slurm_settings(
                Path(root), slurm, site.issuer.url, stuck_s=86400, poll_s=POLL_S, client_deadline_s=30
            )
        )
        async with site.running(), site.api() as api:
            assert site.process is not None
            pid = site.process.pid
            slurm.output("scontrol", "update", "PartitionName=cpu", "State=DOWN")
            await fill(api, count)
            before = tree_seconds(pid)
            await asyncio.sleep(MEASURED_S)
            share = (tree_seconds(pid) - before) / MEASURED_S
            memory = {f"{name_of(one)} {one}": pss_bytes(one) / 1e6 for one in tree(pid)}
            print(
                f"following {count}: {share:.1%} of a core (bar 3 %), "
                f"{sum(memory.values()):.0f} MB PSS in all (bar 200 MB): "
                + ", ".join(f"{name} {mb:.0f}" for name, mb in memory.items())
            )
            late = [await lateness(api) for _ in range(5)]
            print(f"end seen after {sorted(late)[2]:.1f} s median, {max(late):.1f} s at most (bar 5 s)")


def name_of(pid: int) -> str:
    """As ps shows it."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def lateness(api: Any) -> float:
    """Seconds from Slurm's end of a job until its final state is told."""
    job = await api.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\nsleep 2\n", "queue": "gpu"})
    await reached(api, job["id"], ("RUNNING", "FINISHING", "FINISHED"), 60)
    view = await ended(api, job["id"], 60)
    return float(time.time() - view["ended_at"])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
