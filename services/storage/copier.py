"""Files and trees copied within this endpoint; the bytes stay in the kernel where they can."""

from __future__ import annotations

import os
from collections.abc import Callable

from edged.accounts.api import Files
from edged.accounts.faults import of_os
from edged.config.storage import Storage
from edged.errors import Conflict, Denied, EdgeError
from services.storage.checksums import Checksums
from services.storage.disk import Disk
from services.storage.exchange import Exchange
from services.storage.faults import status
from services.storage.multistatus import Refused
from services.storage.namespace import Target
from services.storage.newfile import new_file
from services.storage.properties import DEAD, is_directory
from services.storage.transfers import Transfers

PIECE = 16 << 20
MAX_DEPTH = 100


class Copier:
    """Copies as the caller's account; source and target may lie in different exports of it."""

    def __init__(
        self,
        config: Storage,
        files: Files,
        disk_of: Callable[[Target], Disk],
        checksums: Checksums,
        transfers: Transfers,
    ) -> None:
        self._config = config
        self._files = files
        self._disk_of = disk_of
        self._checksums = checksums
        self._transfers = transfers

    async def file(self, exchange: Exchange, source: Target, target: Target, *, replace: bool) -> None:
        """Whole or not at all, with digests and dead properties. Raises EdgeError."""
        opened = await self._files.open(exchange.grant, source.place)
        reading, writing = self._disk_of(source), self._disk_of(target)
        durable, entry = self._config.durable, opened.entry
        try:
            async with new_file(exchange, self._files, writing, target, durable=durable) as new:
                await self._bytes(exchange, source, opened.fd, new.fd)
                if not await reading.unchanged(opened.fd, entry.size, entry.mtime_ns):
                    raise Conflict("the source changed while it was copied")
                known = await self._checksums.stored(exchange.grant, source, entry)
                dead = await self._dead(exchange, source)
                await new.commit(known, entry.size, replace=replace, mtime_ns=entry.mtime_ns, attributes=dead)
        finally:
            reading.close(opened.fd)

    async def tree(self, exchange: Exchange, destination: Target, *, deep: bool) -> list[Refused]:
        """A collection and, when ``deep``, all in it; what fails is told and the rest goes on (§9.8.3)."""
        failed: list[Refused] = []
        waiting = [(exchange.target, destination, 0)]
        while waiting:
            source, target, depth = waiting.pop()
            try:
                await self._files.mkdir(exchange.grant, target.place)
                await self.properties(exchange, source, target)
                if depth > MAX_DEPTH:
                    raise Conflict("nested too deeply")
                members = await self._files.list(exchange.grant, source.place) if deep else ()
            except EdgeError as error:
                if depth == 0:
                    raise
                failed.append(Refused(target.href, status(error), error.message))
                continue
            for member in members:
                inner, outer = source.child(member.name), target.child(member.name)
                if is_directory(member):
                    waiting.append((inner, outer, depth + 1))
                    continue
                try:
                    await self.file(exchange, inner, outer, replace=False)
                except EdgeError as error:
                    failed.append(Refused(outer.href, status(error), error.message))
        return failed

    async def _bytes(self, exchange: Exchange, source: Target, reading: int, writing: int) -> None:
        disk, verdict = self._disk_of(source), exchange.verdict
        stop = False

        def abort() -> None:
            nonlocal stop
            stop = True

        with self._transfers.running("copy", verdict.principal, verdict.account, abort) as transfer:
            try:
                while count := await disk.run((reading, writing), _copy_piece, reading, writing):
                    transfer.moved += count
                    if stop:
                        raise Denied("cut by the site")
            except OSError as error:
                raise of_os(error) from error

    async def properties(self, exchange: Exchange, source: Target, target: Target) -> None:
        """Dead properties of a collection go with it (§9.8.2)."""
        dead = await self._dead(exchange, source)
        if dead:
            await self._files.set_attributes(exchange.grant, target.place, dead)

    async def _dead(self, exchange: Exchange, source: Target) -> dict[str, bytes]:
        try:
            attributes = await self._files.attributes(exchange.grant, source.place)
        except EdgeError:
            return {}
        return {DEAD: attributes[DEAD]} if DEAD in attributes else {}


def _copy_piece(reading: int, writing: int) -> int:
    """Some bytes from one file's position to the other's end; 0 at the end. For a thread."""
    try:
        return os.copy_file_range(reading, writing, PIECE)
    except OSError:  # across file systems, or not supported here
        data = os.read(reading, 1 << 20)
        view = memoryview(data)
        while view:
            view = view[os.write(writing, view) :]
        return len(data)
