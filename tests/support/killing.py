"""A stream of submissions with kill -9 in it, and the count of what became of each job."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edged.errors import EdgeError
from tests.support.site import Site, ended

VICTIMS = ("daemon", "edged-accountd", "b-worker", "f-worker")


@dataclass(slots=True)
class Found:
    """The verdict. ``lost``: acknowledged, but never ran; ``doubled``: ran more than once."""

    acknowledged: int = 0
    finished: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)


class Killing:
    """``points`` kills, ``per_point`` submissions around each."""

    def __init__(
        self, site: Site, *, seed: int, points: int, per_point: int, queues: tuple[str, ...] = ()
    ) -> None:
        self.site = site
        self.points = points
        self.per_point = per_point
        self.random = random.Random(seed)
        self.keys: list[str] = []
        self.ids: dict[str, str] = {}
        self.killed: Counter[str] = Counter()
        self.runs = site.root / "runs"
        self.queues = queues

    async def run(self) -> Found:
        """Submit, kill, start again, submit again what got no answer, and count at the end."""
        self.runs.mkdir(exist_ok=True)
        self.runs.chmod(0o777)
        for _ in range(self.points):
            keys = [secrets.token_hex(8) for _ in range(self.per_point)]
            self.keys += keys
            submitting = asyncio.gather(*(self._submit(key) for key in keys))
            await asyncio.sleep(self.random.uniform(0.0, 0.6))
            await self._kill()
            await submitting
        for key in self.keys:  # whoever got no answer asks again with the same key
            while key not in self.ids:
                await self._submit(key)
        return await self._count()

    async def _submit(self, key: str) -> None:
        body = {"script": f"#!/bin/sh\nmktemp {self.runs}/{key}.XXXXXXXX\n", "key": key}
        if self.queues:
            body["queue"] = self.queues[
                int(key, 16) % len(self.queues)
            ]  # the same whenever it is asked again
        with suppress(EdgeError):
            async with self.site.api() as api:
                self.ids[key] = (await api.call("POST", "/v1/jobs", body=body))["id"]

    async def _kill(self) -> None:
        victim = self.random.choice(VICTIMS)
        self.killed[victim] += 1
        if victim == "daemon":
            self.site.kill()
            await self.site.start()
            return
        for pid in self._processes(victim):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes(self, name: str) -> list[int]:
        """Processes of this site whose name starts so (accountd and workers name themselves)."""
        assert self.site.process is not None
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if entry.joinpath("comm").read_text().startswith(name[:15]) and self._ours(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def _ours(self, pid: int) -> bool:
        """Whether the site's daemon is an ancestor."""
        assert self.site.process is not None
        while pid > 1:
            if pid == self.site.process.pid:
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return False

    async def _count(self) -> Found:
        found = Found(acknowledged=len(self.ids), killed=self.killed)
        async with self.site.api() as api:
            for job in self.ids.values():
                view = await ended(api, job, 150)
                found.finished += view["state"] == "FINISHED"
        runs = Counter(path.name.partition(".")[0] for path in self.runs.iterdir())
        found.lost = [key for key in self.ids if runs[key] == 0]
        found.doubled = [key for key, count in runs.items() if count > 1]
        return found
