"""Work nobody waits for: orphaned uploads removed, space measured, consistency dumps written.

As the export's ``upkeep`` account, which root-owned configuration must allow ([[identity.assertions]]).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from edged.accounts.api import Files, Kind, Place
from edged.config.storage import Export
from edged.errors import Conflict, EdgeError, NotFound
from edged.identity.client import Verdicts
from edged.identity.words import AccountName
from edged.logs import get_logger
from services.storage.disk import Disk
from services.storage.namespace import Target
from services.storage.space import Spaces

log = get_logger("edged.storage.upkeep")

SUBJECT = "upkeep"
ORPHAN_S = 86400.0  # an upload without a byte for a day is nobody's any more
SWEEP_S = 3600.0
FIRST_S = 60.0  # after the start, when readers and writers have what they need
DUMPS = "dumps"
BREATHER_S = 0.02  # between directories: a dump must not be felt
PIECE = 256 * 1024


class Upkeep:
    """The periodic work of all exports."""

    def __init__(
        self,
        exports: tuple[Export, ...],
        identity: Verdicts,
        files: Files,
        spaces: Spaces,
        disk_of: Callable[[Target], Disk],
    ) -> None:
        self._exports = tuple(export for export in exports if export.upkeep is not None)
        self._identity = identity
        self._files = files
        self._spaces = spaces
        self._disk_of = disk_of

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Work for as long as the context is entered."""
        working = [tasks.create_task(self._tend(export)) for export in self._exports]
        try:
            yield
        finally:
            for task in working:
                task.cancel()

    async def _tend(self, export: Export) -> None:
        await asyncio.sleep(FIRST_S)
        while True:
            try:
                await self.once(export, time.time())
            except EdgeError as error:
                log.warning("upkeep failed", extra={"export": export.label, "reason": str(error)})
            await asyncio.sleep(SWEEP_S)

    async def once(self, export: Export, now: float) -> None:
        """One round: space, orphans, and the dump when it is due."""
        grant, account = await self._grant(export)
        await self._spaces.ask(grant, account, Target(export, "", export.prefix, True))
        removed = await self._files.sweep(grant, Place(export.label, ""), older_s=ORPHAN_S)
        if removed:
            log.info("orphaned uploads removed", extra={"export": export.label, "count": removed})
        if export.dump_every_s is not None and await self._due(export, grant, now):
            await self.dump(export, now)

    async def _grant(self, export: Export) -> tuple[bytes, str]:
        assert export.upkeep is not None
        verdict = await self._identity.asserted(SUBJECT, AccountName(export.upkeep))
        return verdict.grant, verdict.account

    async def _due(self, export: Export, grant: bytes, now: float) -> bool:
        try:
            entries = await self._files.list(grant, Place(export.label, DUMPS))
        except NotFound:
            return True
        latest = max((e.mtime_ns / 1e9 for e in entries if e.name.startswith("dump_")), default=0.0)
        return now - latest >= (export.dump_every_s or 0)

    async def dump(self, export: Export, now: float) -> int:
        """Write ``dumps/dump_YYYYMMDD``: one path a line, as Rucio's auditor reads it; how many lines.

        The walk is slow on purpose. Files that come or go meanwhile may be in it or not: the auditor
        compares with lists of days before and after.
        """
        name = time.strftime("dump_%Y%m%d", time.gmtime(now))
        target = Target(export, f"{DUMPS}/{name}", f"{export.prefix}/{DUMPS}/{name}")
        grant, _ = await self._grant(export)
        temporary = await self._files.temporary(grant, target.place, parents=True)
        disk = self._disk_of(target)
        lines = 0
        done = False
        try:
            async for text, count in self._lines(export):
                await disk.run((temporary.fd,), _append, temporary.fd, text)
                lines += count
            grant, _ = await self._grant(export)
            await self._files.commit(grant, temporary.place, target.place, replace=True, durable=True)
            done = True
        finally:
            disk.close(temporary.fd)
            if not done:
                await asyncio.shield(self._discard(grant, temporary.place))
        log.info("dump written", extra={"export": export.label, "files": lines})
        return lines

    async def _lines(self, export: Export) -> AsyncIterator[tuple[bytes, int]]:
        """Paths relative to the export, in pieces; directories on the way are listed one at a time."""
        waiting = [""]
        held: list[str] = []
        size = 0
        while waiting:
            here = waiting.pop()
            grant, _ = await self._grant(export)
            try:
                entries = await self._files.list(grant, Place(export.label, here))
            except (NotFound, Conflict):  # gone meanwhile
                continue
            for entry in entries:
                path = f"{here}/{entry.name}" if here else entry.name
                if entry.kind is Kind.DIRECTORY and path != DUMPS:
                    waiting.append(path)
                elif entry.kind is Kind.FILE and "\n" not in entry.name:
                    held.append(path)
                    size += len(path)
            if size > PIECE:
                yield _text(held), len(held)
                held, size = [], 0
            await asyncio.sleep(BREATHER_S)
        yield _text(held), len(held)

    async def _discard(self, grant: bytes, place: Place) -> None:
        try:
            await self._files.discard(grant, place)
        except EdgeError:
            return


def _text(paths: list[str]) -> bytes:
    return "".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape")


def _append(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
