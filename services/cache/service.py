"""The cache, wired: what is made, from what, in which order."""

from __future__ import annotations

import asyncio
import hashlib
import platform
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from edged import lifecycle, metrics
from edged.config import Config
from edged.config.cache import Cache
from edged.services import Context
from services.cache.accesslog import AccessLog
from services.cache.admin import Admin
from services.cache.cvmfs import Cvmfs
from services.cache.engine import Engine
from services.cache.eviction import Evictor
from services.cache.figures import Figures
from services.cache.keeper import Keeper
from services.cache.listener import Listener
from services.cache.objects import Objects
from services.cache.repositories import Origins, Routes
from services.cache.residents import Residents
from services.cache.store import Store
from services.cache.web import Web

_DISK_THREADS = 8
_SWEEP_S = 60.0


def build(config: Config, context: Context) -> list[lifecycle.Service]:
    """The cache's part of this process; nothing without a [cache] section."""
    if config.cache is None:
        return []
    admin = config.cache.admin or config.runtime.run / "cache"
    service = CacheService(
        config.cache,
        worker=context.worker,
        listener_sockets=context.inherited.get("cache"),
        admin_directory=admin,
        stop_deadline_s=config.runtime.stop_deadline_s,
    )
    return [service]


class CacheService:
    """One process of the cache. ``addresses`` tells where it listens once running."""

    name = "cache"

    def __init__(
        self,
        config: Cache,
        *,
        worker: int = 0,
        listener_sockets: list[socket.socket] | None = None,
        admin_directory: Path,
        stop_deadline_s: float = 30.0,
    ) -> None:
        self._disk = ThreadPoolExecutor(_DISK_THREADS, "cache-disk")
        self.store = Store(config.store)
        self.residents = Residents(config.memory // config.workers, config.open_files)
        self._evictor = Evictor(self.store, config.disk, config.disk_free)
        self.keeper = Keeper(self.store, self._evictor, self._disk)
        self.objects = Objects(config, self.store, self.residents, self.keeper, self._disk)
        self.origins = Origins(config.upstream)
        self.routes = Routes(config, self.origins, self.store.repositories)
        via = b"1.1 " + _pseudonym(config)
        cvmfs = Cvmfs(config, self.objects, self.residents)
        web = Web(config, self.objects, self.residents, self.store, self._disk, via=via)
        self._engine = Engine(self.routes, self.residents, cvmfs, web, _pseudonym(config))
        self.access = AccessLog(config.access_log, self._disk)
        self.listener = Listener(
            config,
            self._engine,
            self.access,
            self._disk,
            inherited=listener_sockets,
            stop_deadline_s=stop_deadline_s,
        )
        self.figures = Figures(self, config)
        self._admin = Admin(self, admin_directory / f"{worker}.sock")

    @property
    def addresses(self) -> list[str]:
        """Where it listens."""
        return self.listener.addresses

    def not_ready(self) -> str | None:
        """A full disk slows the cache down; it does not stop it."""
        return "the store takes no objects" if self.keeper.full else None

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Serve while entered."""
        self.objects.start(tasks)
        self._engine.start(tasks)
        metrics.register(self.figures)
        chores = [
            tasks.create_task(work)
            for work in (self.keeper.write(), self.keeper.tidy(), self.access.write(), self._remember_uses())
        ]
        try:
            async with self._admin.running(tasks), self.listener.running(tasks):
                yield
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            await self._close()

    async def _remember_uses(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.keeper.sweep(self.residents)

    async def _close(self) -> None:
        metrics.REGISTRY.unregister(self.figures)
        await self.access.flush()
        await self.keeper.flush()
        self.keeper.sweep(self.residents)
        await self.keeper.remember_uses()
        self.origins.close()
        self.residents.clear()
        self._disk.shutdown()
        self.access.close()
        self._evictor.close()
        self.store.usage.close()


def _pseudonym(config: Cache) -> bytes:
    """Our name in Via, by which we know a request that comes around."""
    seed = f"{platform.node()} {config.store} {' '.join(config.listen)}"
    return b"edged-" + hashlib.sha256(seed.encode()).hexdigest()[:8].encode()
