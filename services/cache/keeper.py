"""What the store is told in the background: small objects to keep, uses to remember, room to make.

Nothing here is ever waited for by a request. When the disk cannot follow, objects are served and not
kept, and a counter says so.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor

from edged.errors import NoSpace
from edged.logs import get_logger
from services.cache.eviction import Evicted, Evictor, count
from services.cache.names import ObjectName
from services.cache.residents import Residents
from services.cache.store import Store

log = get_logger("edged.cache.keeper")

_MAX_PENDING = 64 << 20
_PERIOD_S = 1.0
_TOUCH_AGAIN_S = 600.0
_BATCH = 256
_GATHER_S = 0.05


class Keeper:
    """Writes behind. ``unkept`` counts objects the disk did not take."""

    def __init__(self, store: Store, evictor: Evictor, disk: Executor) -> None:
        self._store = store
        self._evictor = evictor
        self._disk = disk
        self._pending: list[tuple[ObjectName, bytes]] = []
        self._pending_bytes = 0
        self._touched: set[str] = set()
        self._touched_before: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self.unkept = 0
        self.evicted = Evicted()
        self.files: int | None = None
        self.full = False

    def keep(self, name: ObjectName, body: bytes) -> None:
        """Store a small object soon."""
        if self._pending_bytes > _MAX_PENDING:
            self.unkept += 1
            return
        self._pending.append((name, body))
        self._pending_bytes += len(body)
        self._wake.set()

    def touch(self, key: str) -> None:
        """The object was used."""
        self._touched.add(key)

    async def flush(self) -> None:
        """Write everything out; used at the end and by tests."""
        async with self._writing:
            while self._pending:
                await self._write_batch()

    async def write(self) -> None:
        """For ever: write what is pending."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_GATHER_S)  # one thread run for many objects, not one for each
            self._wake.clear()
            await self.flush()

    async def tidy(self) -> None:
        """For ever: make room, remember uses, and once count what is there."""
        loop = asyncio.get_running_loop()
        counting = loop.run_in_executor(self._disk, count, self._store)
        while True:
            await asyncio.sleep(_PERIOD_S)
            if self.files is None and counting.done():
                self.files, _ = counting.result()
            done = await loop.run_in_executor(self._disk, self._evictor.round)
            self.evicted = Evicted(self.evicted.files + done.files, self.evicted.bytes + done.bytes)
            await self.remember_uses()

    async def remember_uses(self) -> None:
        """Mark used objects on disk, so that eviction takes others first, also after a restart."""
        touched, self._touched = self._touched, set()
        if touched:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._store.touch, touched)

    def sweep(self, residents: Residents) -> None:
        """Objects hit in memory since the last sweep count as used."""
        now = time.time()
        for resident in residents.used_since(now - _TOUCH_AGAIN_S):
            resident.touched = now
            self._touched.add(resident.key)

    async def _write_batch(self) -> None:
        batch, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
        try:
            unkept = await asyncio.get_running_loop().run_in_executor(self._disk, self._put_all, batch)
        except asyncio.CancelledError:  # stopping: the last flush writes them
            self._pending[:0] = batch
            raise
        self._pending_bytes -= sum(len(body) for _, body in batch)
        self.unkept += unkept
        if (unkept > 0) != self.full:
            self.full = unkept > 0
            log.warning("the store takes objects again" if not self.full else "the store takes no objects")

    def _put_all(self, batch: list[tuple[ObjectName, bytes]]) -> int:
        unkept = 0
        for name, body in batch:
            try:
                self._store.put(name, body)
            except NoSpace:
                unkept += 1
        if unkept:
            self._evictor.round()
        return unkept
