"""The digests of files at rest: answered from attributes, else computed once, in threads, and kept."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from edged.accounts.api import Entry, Files
from edged.errors import EdgeError
from edged.logs import get_logger
from services.storage import digests, records
from services.storage.disk import Disk
from services.storage.exchange import Exchange, quietly
from services.storage.namespace import Target

log = get_logger("edged.storage.checksums")

State = tuple[int, int, int, int]  # device, inode, size, mtime_ns
REMEMBERED = 4096
PIECE = 1 << 20


class Checksums:
    """Digests of whole files, per process. One computation serves all who ask meanwhile."""

    def __init__(self, files: Files, disk_of: Callable[[Target], Disk]) -> None:
        self._files = files
        self._disk_of = disk_of
        self._remembered: OrderedDict[State, dict[str, bytes]] = OrderedDict()
        self._running: dict[tuple[State, str], asyncio.Future[bytes]] = {}

    async def stored(self, grant: bytes, target: Target, entry: Entry) -> dict[str, bytes]:
        """What is known without reading the file."""
        remembered = self._remembered.get(state_of(entry), {})
        try:
            attributes = await self._files.attributes(grant, target.place)
        except EdgeError:  # a file system without user attributes
            attributes = {}
        return {**remembered, **records.known(attributes, entry)}

    async def answer(
        self, exchange: Exchange, entry: Entry, asked: Iterable[str], *, compute: bool
    ) -> dict[str, bytes]:
        """The asked digests, computing what is not known when ``compute`` allows."""
        found = await self.stored(exchange.grant, exchange.target, entry)
        for algorithm in asked:
            if algorithm not in found and compute:
                with exchange.lasting(exchange.target):
                    found[algorithm] = await self._compute(exchange, entry, algorithm)
                    await self._keep(exchange, entry, found)
        return found

    async def learned(self, exchange: Exchange, entry: Entry, found: dict[str, bytes]) -> None:
        """Somebody read the whole file anyway: keep what came out."""
        known = await self.stored(exchange.grant, exchange.target, entry)
        if any(algorithm not in known for algorithm in found):
            await self._keep(exchange, entry, {**known, **found})

    async def _compute(self, exchange: Exchange, entry: Entry, algorithm: str) -> bytes:
        key = (state_of(entry), algorithm)
        running = self._running.get(key)
        if running is not None:
            return await asyncio.shield(running)
        self._running[key] = future = asyncio.get_running_loop().create_future()
        try:
            value = await self._read(exchange, algorithm)
            future.set_result(value)
            return value
        except BaseException as error:
            # waiters try themselves only after an answer; being cancelled is no answer for them
            future.set_exception(error if isinstance(error, EdgeError) else TimeoutError())
            future.exception()
            raise
        finally:
            del self._running[key]

    async def _read(self, exchange: Exchange, algorithm: str) -> bytes:
        opened = await self._files.open(exchange.grant, exchange.target.place)
        disk = self._disk_of(exchange.target)
        try:
            return await disk.compute((opened.fd,), digest_of, opened.fd, algorithm)
        finally:
            disk.close(opened.fd)

    async def _keep(self, exchange: Exchange, entry: Entry, found: dict[str, bytes]) -> None:
        state = state_of(entry)
        self._remembered[state] = dict(found)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        put = records.to_keep(found, entry.size, entry.inode, entry.mtime_ns, time.time_ns())
        # a token that only reads may not write attributes; then this process remembers
        await quietly(self._files.set_attributes(exchange.grant, exchange.target.place, put))


def state_of(entry: Entry) -> State:
    """What identifies contents: changes with every upload and every write."""
    return entry.device, entry.inode, entry.size, entry.mtime_ns


def digest_of(fd: int, algorithm: str) -> bytes:
    """Read the whole file; for a thread."""
    running = digests.running(algorithm)
    buffer = bytearray(PIECE)
    view = memoryview(buffer)
    at = 0
    while count := os.preadv(fd, (view,), at):
        running.update(view[:count])
        at += count
    return running.digest()
