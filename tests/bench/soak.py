"""Mixed load on one edge for some minutes, and whether its memory stays flat.

    python -m tests.bench.soak [--minutes 60] [--clients 2] [--only job,upload,fetch,tunnel]

Clients submit jobs and remove them, upload, read back and delete files, fetch through the cache and open tunnels.
Every answer is checked. Each process's memory (PSS) is read every 5 s; growth is the slope after the first third,
by least squares. Bar: less than 5 % an hour is flat; a shorter run tells how far its slope would lead. Two things
fill up first: the local batch system's sweep shows ended jobs for five minutes, and a front keeps the handles of the
last 2,048 grants, one a job. So a run of less than 20 minutes climbs; --only shows with what.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
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
from tests.support.cpu import pss_bytes, tree, tree_seconds
from tests.support.origin import Origin
from tests.support.site import Site, ended

PERIOD_S = 5.0
WARM = 1 / 3  # of the run: caches fill, workers start
BAR = 0.05  # an hour
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


class Memory:
    """PSS of the edge's processes over time; those of jobs come and go and are left out."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.samples: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self.names: dict[int, str] = {}

    async def watch(self, stop: asyncio.Event) -> None:
        """Read until stopped."""
        began = time.monotonic()
        while not stop.is_set():
            for pid in tree(self._pid):
                try:
                    self.samples[pid].append((time.monotonic() - began, pss_bytes(pid) / MIB))
                    self.names[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
                except OSError:
                    continue
            try:
                await asyncio.wait_for(stop.wait(), PERIOD_S)
            except TimeoutError:
                continue

    def tell(self, seconds: float) -> bool:
        """Print each process; whether all together stay flat."""
        count = max(len(found) for found in self.samples.values())
        stayed = {pid: found for pid, found in self.samples.items() if len(found) > count * 0.9}
        total_end, total_slope = 0.0, 0.0
        for pid, found in stayed.items():
            late = [sample for sample in found if sample[0] >= seconds * WARM]
            slope = statistics.linear_regression(*zip(*late, strict=True)).slope * 60
            total_end, total_slope = total_end + late[-1][1], total_slope + slope
            told = f"{found[0][1]:6.1f} → {late[0][1]:6.1f} → {late[-1][1]:6.1f} MiB"
            print(f"{self.names[pid]:18} {told}   {slope:+.3f} MiB/min")
        growth = total_slope * 60 / total_end
        print(f"together           {total_end:.1f} MiB, {total_slope:+.3f} MiB/min: {growth:+.1%} an hour")
        return growth < BAR


async def soak(minutes: float, clients: int, only: tuple[str, ...]) -> bool:
    """Run it. True: every answer was right and memory is flat."""
    with tempfile.TemporaryDirectory(prefix="edged-soak-") as name, Origin.running("127.0.0.1") as origin:
        site = site_in(Path(name), origin)
        async with site.running():
            assert site.process is not None
            load, memory, stop = Load(site, origin, only), Memory(site.process.pid), asyncio.Event()
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
        flat = memory.tell(minutes * 60)
    print("flat" if flat else f"not flat by this run's slope (bar {BAR:.0%} an hour)")
    return flat and not load.wrong


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
