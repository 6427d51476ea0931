"""What accepting and showing jobs costs: ``python -m tests.bench.jobs_accept [COUNT]``.

CPU seconds of all processes of the site (daemon, accountd, workers), over https keep-alive, durable:
every acknowledgement follows an fsync. The jobs wait for an input, so that only accepting is measured.
The peer's figures are A-REX 6.17's from its own measurement on such a machine: 2.4 ms a single job,
1.0 ms a job in bulks of 100, 40 ms for the status of 1,000 jobs.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.real.jobs.fixtures import local_jobs
from tests.support.cpu import tree_seconds
from tests.support.site import Site

WAITS = {"executable": "/bin/true", "arguments": ["--x"], "inputs": ["never"]}
STATUS_ROUNDS = 100
PEER_MS = {"single": 2.4, "bulk of 100": 1.0, "status of 1,000": 40.0}
BAR_MS = {"single": 1.5, "bulk of 100": 0.7, "status of 1,000": 6.0}


async def main(count: int) -> None:
    """Print CPU per job and the ratio to the peer."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as root:
        async with Site(Path(root), jobs=local_jobs(Path(root))).running() as site, site.api() as api:
            assert site.process is not None
            pid = site.process.pid

            async def single() -> None:
                for _ in range(count):
                    await api.call("POST", "/v1/jobs", body=WAITS)

            async def bulk() -> None:
                for _ in range(count // 100 or 1):
                    await api.call("POST", "/v1/jobs/bulk", body={"jobs": [WAITS] * 100})

            async def status() -> None:
                for _ in range(STATUS_ROUNDS):
                    page = await api.call("GET", "/v1/jobs", limit=1000)
                    assert len(page["jobs"]) == 1000

            await api.call("POST", "/v1/jobs/bulk", body={"jobs": [WAITS] * 100})  # warm
            for name, work, units in (
                ("single", single, count),
                ("bulk of 100", bulk, (count // 100 or 1) * 100),
                ("status of 1,000", status, STATUS_ROUNDS),
            ):
                before, started = tree_seconds(pid), time.perf_counter()
                await work()
                used_ms = (tree_seconds(pid) - before) / units * 1000
                wall_ms = (time.perf_counter() - started) / units * 1000
                print(
                    f"{name:16} CPU {used_ms:7.3f} ms  wall {wall_ms:7.3f} ms  bar {BAR_MS[name]} ms  "
                    f"ratio to A-REX {used_ms / PEER_MS[name]:.2f}"
                )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
