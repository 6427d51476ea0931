"""Objects by name: hot, on disk, or on their way in; the one place that decides which."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor

from edged.config.cache import Cache
from edged.errors import Busy, EdgeError, Unavailable
from edged.logs import get_logger
from services.cache import answers, ticket
from services.cache.fetcher import fetch
from services.cache.files import OpenFile, WouldBlock, in_page_cache, open_file
from services.cache.fill import Fill
from services.cache.keeper import Keeper
from services.cache.names import ObjectName
from services.cache.residents import Resident, Residents
from services.cache.store import Store
from services.cache.ticket import Ticket, Watch
from services.cache.upstream.origin import Origin

log = get_logger("edged.cache.objects")

NEVER = float("inf")
_WATCH_S = 0.005
_ORPHAN_CHECK = 40  # looks between two checks whether the other process lives


class Objects:
    """All content-addressed objects of this process and the store it shares."""

    def __init__(
        self, config: Cache, store: Store, residents: Residents, keeper: Keeper, disk: Executor
    ) -> None:
        self._config = config
        self._store = store
        self._residents = residents
        self._keeper = keeper
        self._disk = disk
        self._fills: dict[str, Fill] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._shared = config.workers > 1

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Fetches run in ``tasks``."""
        self._tasks = tasks

    @property
    def filling(self) -> int:
        """Objects on their way in."""
        return len(self._fills)

    # what we have

    def at_hand(self, name: ObjectName) -> Resident | None:
        """The object if it can be had without waiting: hot, or on disk and in the page cache."""
        resident = self._residents.get(name.key)
        if resident is not None:
            return resident
        if self._store.presence.lacks(name):
            return None
        try:
            file = self._store.look(name)
        except WouldBlock:
            return None
        if file is None:
            return None
        if file.size > self._config.memory_object:
            return self._open(name, file) if self._store.trusted(file) else None
        if file.size and not in_page_cache(file.fd, file.size - 1):
            return None
        return self._small(name, file)

    async def load(self, name: ObjectName) -> Resident | None:
        """The object if it is hot or on disk; read and verified in a thread when need be."""
        resident = self.at_hand(name)
        if resident is not None:
            return resident
        if self._store.presence.lacks(name):
            return None
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(self._disk, self._store.open, name)
        if file is None:
            return None
        if file.size <= self._config.memory_object:
            return (
                self._resident(name, body)
                if (body := await self._verified_body(name, file)) is not None
                else None
            )
        if not self._store.trusted(file) and not await loop.run_in_executor(
            self._disk, self._store.verify, name
        ):
            return None
        return self._open(name, file)

    def fill_of(self, name: ObjectName) -> Fill | None:
        """The fetch under way, if there is one."""
        return self._fills.get(name.key)

    async def drop(self, name: ObjectName) -> None:
        """A client says it is bad: forget it everywhere."""
        self._residents.drop(name.key)
        await asyncio.get_running_loop().run_in_executor(self._disk, self._store.remove, name)

    # what we fetch

    def fetch(self, name: ObjectName, origins: Sequence[Origin], path: bytes) -> Fill:
        """The fetch of this object, begun if it is not under way. Raises Busy."""
        fill = self._fills.get(name.key)
        if fill is not None:
            return fill
        if len(self._fills) >= self._config.fills:
            raise Busy("too many objects are being fetched")
        assert self._tasks is not None
        fill = Fill(
            self._store,
            self._disk,
            name=name,
            small=self._config.memory_object,
            limit=self._config.max_object,
        )
        self._fills[name.key] = fill
        self._tasks.create_task(self._run(fill, name, origins, path))
        return fill

    async def whole(self, name: ObjectName, origins: Sequence[Origin], path: bytes) -> bytes:
        """The bytes of a (small) object, from wherever. Raises EdgeError."""
        resident = await self.load(name)
        if resident is None:
            fill = self.fetch(name, origins, path)
            await fill.end()
            if fill.body is not None:
                return fill.body
            resident = await self.load(name)
        if resident is None:
            raise Unavailable("an object vanished while it was read")
        if resident.body is not None:
            return resident.body
        assert resident.file is not None
        return await asyncio.get_running_loop().run_in_executor(self._disk, resident.file.read)

    async def _run(self, fill: Fill, name: ObjectName, origins: Sequence[Origin], path: bytes) -> None:
        """The life of a fetch; its outcome is in the fill, never raised."""
        try:
            if not self._shared or await self._ours(fill, name):
                await fetch(fill, origins, path, self._config.upstream)
                self._arrived(fill, name)
        except EdgeError as error:
            fill.fail(error)
        except Exception as error:  # a bug must not take the other fetches with it
            log.exception("fetch failed", extra={"object": name.key})
            fill.fail(Unavailable("the fetch failed", detail=repr(error)))
        finally:
            self._fills.pop(name.key, None)
            if not fill.done and fill.failure is None:
                fill.fail(Unavailable("the cache is stopping"))

    def _arrived(self, fill: Fill, name: ObjectName) -> None:
        if fill.body is not None:
            self._resident(name, fill.body)
            if not self._shared:
                self._keeper.keep(name, fill.body)
        elif fill.file is not None and fill.kept:
            fill.file.size = fill.received
            self._open(name, fill.file)

    def keep(self, name: ObjectName, body: bytes) -> None:
        """Make a body known under its own hash, hot at once and on disk soon."""
        self._resident(name, body)
        self._keeper.keep(name, body)

    # among several processes

    async def _ours(self, fill: Fill, name: ObjectName) -> bool:
        """True when this process is to fetch; False when another did and ``fill`` shows the outcome."""
        loop = asyncio.get_running_loop()
        while True:
            held = await loop.run_in_executor(self._disk, ticket.take, self._store.tickets, name)
            if isinstance(held, Ticket):
                file = await loop.run_in_executor(self._disk, self._store.open, name)
                if file is None:
                    fill.ticket = held
                    return True
                held.finished(file.size)  # another process was faster
                fill.mirror(file, file.size, file.size, done=True)
                return False
            try:
                if await self._watched(fill, name, held):
                    return False
            finally:
                held.close()

    async def _watched(self, fill: Fill, name: ObjectName, watch: Watch) -> bool:
        """Show another process's fetch until it ends; False when that process died."""
        looks = 0
        while True:
            said = watch.look()
            if said is not None and said.state is ticket.State.DONE:
                file = await asyncio.get_running_loop().run_in_executor(self._disk, self._store.open, name)
                if file is None:
                    return False
                fill.mirror(file, file.size, file.size, done=True)
                return True
            if said is not None and said.state is not ticket.State.FETCHING:
                raise said.error()
            if said is not None and said.ready > fill.ready:
                file = fill.file or open_file(self._store.part_path(said.part))
                if file is not None:
                    fill.mirror(file, said.size, said.ready)
            looks += 1
            if looks % _ORPHAN_CHECK == 0 and watch.orphaned():
                fill.restart()
                return False
            await asyncio.sleep(_WATCH_S)

    # making residents

    def _small(self, name: ObjectName, file: OpenFile) -> Resident | None:
        body = file.read()
        if not name.matches(body):
            log.warning("damaged object removed", extra={"object": name.key, "size": file.size})
            self._store.remove(name)
            return None
        return self._resident(name, body)

    async def _verified_body(self, name: ObjectName, file: OpenFile) -> bytes | None:
        body = await asyncio.get_running_loop().run_in_executor(self._disk, file.read)
        if name.matches(body):
            return body
        log.warning("damaged object removed", extra={"object": name.key, "size": file.size})
        await asyncio.get_running_loop().run_in_executor(self._disk, self._store.remove, name)
        return None

    def _resident(self, name: ObjectName, body: bytes) -> Resident:
        head = answers.resident_head(answers.OBJECT, len(body))
        return self._hold(Resident(name.key, head, len(body), time.time(), NEVER, body=body))

    def _open(self, name: ObjectName, file: OpenFile) -> Resident:
        head = answers.resident_head(answers.OBJECT, file.size)
        return self._hold(Resident(name.key, head, file.size, time.time(), NEVER, file=file))

    def _hold(self, resident: Resident) -> Resident:
        self._residents.add(resident)
        self._keeper.touch(resident.key)
        return resident
