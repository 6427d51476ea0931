"""Mixed load on one edge for some minutes, and whether its memory stays flat.

    python -m tests.bench.soak [--minutes 60] [--clients 2] [--only job,upload,fetch,tunnel]

Clients submit jobs and remove them, upload, read back and delete files, fetch through the cache and open tunnels.
Every answer is checked. Each process's own memory (what is not a file's) is read every 5 s; its growth is the slope
by least squares, of each third of the run. Two things fill up first: the local batch system's sweep shows ended jobs
for five minutes, and a front keeps the handles of the last 2,048 grants, one a job. So the verdict is on the last
third, less than 5 % an hour is flat, and there is none before that third begins with both of them full; --only shows
what memory follows. Beside it the memory that a cleaned job left behind, as if all growth came from jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.real.jobs.fixtures import local_jobs
from tests.support.cpu import tree, tree_seconds
from tests.support.origin import Origin
from tests.support.site import Site, ended

PERIOD_S = 5.0
BAR = 0.05  # an hour
SWEPT_S = 300.0
HANDLES = 2048
MIB = 1 << 20
OBJECTS = 500


@dataclass(slots=True)
class Load:
    """One site and what its clients did."""

    site: Site
    origin: Origin
    only: tuple[str, ...]
    done: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    async def until(self, stop: asyncio.Event, name: str, step: Callable[[int], Awaitable[None]]) -> None:
        """Repeat one step; a wrong answer is counted and told at the end."""
        number = 0
        while not stop.is_set():
            number += 1
            try:
                await step(number)
                self.done[name] += 1
            except Exception as error:
                self.wrong[f"{name}: {type(error).__name__}: {error}"[:160]] += 1

    async def clients(self, stop: asyncio.Event, client: int) -> None:
        """One client of each kind, each on connections of its own."""
        async with (
            self.site.api("jobs") as jobs,
            self.site.api("storage") as storage,
            aiohttp.ClientSession() as web,
            asyncio.TaskGroup() as tasks,
        ):

            async def job(_: int) -> None:
                body = {"executable": "/bin/echo", "arguments": ["soak"], "queue": "short"}
                made = await jobs.call("POST", "/v1/jobs", body=body)
                view = await ended(jobs, made["id"])
                assert view["state"] == "FINISHED", view
                await jobs.call("DELETE", f"/v1/jobs/{made['id']}")

            async def upload(number: int) -> None:
                path, content = f"/cms/soak-{client}-{number % 50}", os.urandom(64) * (16 << 10)
                async with storage.request("PUT", path, data=content):
                    pass
                async with storage.request("GET", path) as response:
                    digest = hashlib.sha256(await response.read()).digest()
                assert digest == hashlib.sha256(content).digest(), "not what was written"
                async with storage.request("DELETE", path):
                    pass

            async def fetch(number: int) -> None:
                await self._through(web, "cache", f"object{(number * 7 + client) % OBJECTS}")

            async def tunnel(_: int) -> None:
                # a session of its own: a tunnel each time
                async with aiohttp.ClientSession() as own:
                    await self._through(own, "egress", "object")

            for step in (job, upload, fetch, tunnel):
                if step.__name__ in self.only:
                    tasks.create_task(self.until(stop, step.__name__, step))

    async def _through(self, web: aiohttp.ClientSession, proxy: str, path: str) -> None:
        url, via = f"http://{self.origin.authority}/{path}", f"http://{self.site.listening[proxy][0]}"
        async with web.get(url, proxy=via) as response:
            assert await response.read() == self.origin.BODY, f"status {response.status}"


def site_in(root: Path, origin: Origin) -> Site:
    """Every part that a mixed load meets."""
    (root / "data").mkdir()
    listen = {"listen": ["127.0.0.1:0"]}
    loopback = ["127.0.0.0/8"]
    return Site(
        root,
        log={"level": "warning"},
        jobs=local_jobs(root),
        storage={**listen, "export": [{"prefix": "/cms", "root": str(root / "data"), "vo": "cms"}]},
        cache={
            **listen,
            "store": str(root / "cache"),
            "disk": "100M",
            "disk_free": "10M",
            "memory": "4M",
            "destination": [{"name": "origin", "hosts": [origin.authority]}],
        },
        egress={
            **listen,
            "inside": loopback,
            "source": [{"name": "nodes", "networks": loopback, "vo": "cms"}],
            "destination": [{"name": "origin", "networks": loopback, "ports": [origin.port]}],
            "rule": [{"name": "out", "to": ["origin"]}],
        },
    )


def own_bytes(pid: int) -> int:
    """Anonymous memory: unlike PSS it does not depend on who else maps the same libraries."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    return 0


class Memory:
    """The edge's processes over time; those of jobs come and go and are left out."""

    def __init__(self, pid: int, done: Counter[str]) -> None:
        self._pid = pid
        self._done = done
        self._full_at: float | None = None  # when a job's handle first made room for another's
        self.samples: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self.names: dict[int, str] = {}

    async def watch(self, stop: asyncio.Event) -> None:
        """Read until stopped."""
        began = time.monotonic()
        while not stop.is_set():
            passed = time.monotonic() - began
            if self._full_at is None and self._done["job"] > HANDLES:
                self._full_at = passed
            for pid in tree(self._pid):
                try:
                    self.samples[pid].append((passed, own_bytes(pid) / MIB))
                    self.names[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
                except OSError:
                    continue
            try:
                await asyncio.wait_for(stop.wait(), PERIOD_S)
            except TimeoutError:
                continue

    def tell(self, seconds: float) -> str:
        """Print each process; the verdict on the last third."""
        count = max(len(found) for found in self.samples.values())
        stayed = {pid: found for pid, found in self.samples.items() if len(found) > count * 0.9}
        slopes = [0.0, 0.0, 0.0]
        for pid, found in stayed.items():
            own = [_slope(found, seconds * third / 3, seconds * (third + 1) / 3) for third in range(3)]
            slopes = [total + slope for total, slope in zip(slopes, own, strict=True)]
            told = ", ".join(f"{slope:+.3f}" for slope in own)
            print(
                f"{self.names[pid]:18} {found[0][1]:6.1f} → {found[-1][1]:6.1f} MiB; MiB/min by thirds {told}"
            )
        total = sum(found[-1][1] for found in stayed.values())
        growth = slopes[2] * 60 / total
        per_job = slopes[2] * MIB * seconds / 60 / max(1, self._done["job"])
        print(f"together {total:.1f} MiB; last third {slopes[2]:+.3f} MiB/min: {growth:+.1%} an hour")
        print(f"if all of it came from jobs: {per_job:+.0f} B a job")
        filled = max(SWEPT_S, (self._full_at or math.inf) if self._done["job"] else 0.0)
        if filled > seconds * 2 / 3:
            return f"too short to say: the last third began before what fills up was full ({self._done['job']} jobs)"
        return "flat" if growth < BAR else f"not flat (bar {BAR:.0%} an hour)"


def _slope(samples: list[tuple[float, float]], begin: float, end: float) -> float:
    """MiB a minute, by least squares."""
    found = [sample for sample in samples if begin <= sample[0] < end]
    return statistics.linear_regression(*zip(*found, strict=True)).slope * 60 if len(found) > 1 else 0.0


async def soak(minutes: float, clients: int, only: tuple[str, ...]) -> bool:
    """Run it. True: every answer was right and memory was seen to be flat."""
    with tempfile.TemporaryDirectory(prefix="edged-soak-") as name, Origin.running("127.0.0.1") as origin:
        site = site_in(Path(name), origin)
        async with site.running():
            assert site.process is not None
            load, stop = Load(site, origin, only), asyncio.Event()
            memory = Memory(site.process.pid, load.done)
            before = tree_seconds(site.process.pid)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(memory.watch(stop))
                for client in range(clients):
                    tasks.create_task(load.clients(stop, client))
                await asyncio.sleep(minutes * 60)
                stop.set()
            cpu = tree_seconds(site.process.pid) - before
        print(f"{minutes:g} minutes, {clients} clients of each kind; CPU of the edge {cpu:.0f} s")
        print(", ".join(f"{count} {what}" for what, count in sorted(load.done.items())))
        for what, count in load.wrong.most_common():
            print(f"WRONG {count} {what}")
        verdict = memory.tell(minutes * 60)
    print(verdict)
    return verdict == "flat" and not load.wrong


def main() -> int:
    """Command line. A missed bar is told; wrong answers are an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--only", default="job,upload,fetch,tunnel", help="to see which load memory follows")
    given = parser.parse_args()
    return 0 if asyncio.run(soak(given.minutes, given.clients, tuple(given.only.split(",")))) else 1


if __name__ == "__main__":
    sys.exit(main())
