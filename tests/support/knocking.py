"""Clients that come again and again on new connections, and note how each was received."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

PATIENCE_S = 60.0


@dataclass(slots=True)
class Door:
    """One listener and a request to it. ``tls`` None: plain."""

    name: str
    host: str
    port: int
    request: bytes
    tls: ssl.SSLContext | None = None


@dataclass(slots=True)
class Reception:
    """What became of the connections to one door."""

    answered: Counter[int] = field(default_factory=Counter)  # by HTTP status
    lost: Counter[str] = field(default_factory=Counter)  # refused, reset, closed without an answer
    slowest_s: float = 0.0

    @property
    def total(self) -> int:
        """How many were answered."""
        return sum(self.answered.values())


@asynccontextmanager
async def knocking(
    doors: list[Door], clients: int = 3, pause_s: float = 0.02
) -> AsyncIterator[dict[str, Reception]]:
    """Knock at every door with some clients each while entered; who knocked last is waited for."""
    receptions = {door.name: Reception() for door in doors}
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for door in doors:
            for _ in range(clients):
                tasks.create_task(_keep_knocking(door, receptions[door.name], stop, pause_s))
        try:
            yield receptions
        finally:
            stop.set()


async def _keep_knocking(door: Door, reception: Reception, stop: asyncio.Event, pause_s: float) -> None:
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        started = loop.time()
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = await _knock(door)
            reception.answered[status] += 1
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            reception.lost[f"{type(error).__name__}: {error}"] += 1
        reception.slowest_s = max(reception.slowest_s, loop.time() - started)
        with suppress(TimeoutError):  # a breath between two
            await asyncio.wait_for(stop.wait(), pause_s)


async def _knock(door: Door) -> int:
    reader, writer = await asyncio.open_connection(door.host, door.port, ssl=door.tls)
    try:
        writer.write(door.request)
        head = await reader.readuntil(b"\r\n")
        return int(head.split()[1])
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
