"""COPY and MOVE within this endpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from aiohttp import web

from edged.accounts.api import Entry, Files
from edged.accounts.faults import of_os
from edged.config.storage import Storage
from edged.errors import BadRequest, Conflict, Denied, EdgeError, NotFound, PreconditionFailed
from services.storage import access, multistatus, records
from services.storage.access import CREATE, MODIFY, READ
from services.storage.changing import Changing
from services.storage.checksums import Checksums
from services.storage.disk import Disk, unchanged
from services.storage.exchange import Exchange, quietly
from services.storage.faults import BadGateway, status
from services.storage.guard import Guard
from services.storage.namespace import Namespace, OwnNames, Target, path_of
from services.storage.properties import DEAD, is_directory
from services.storage.sending import Connection
from services.storage.thirdparty.copies import Copies
from services.storage.transfers import Transfers

PIECE = 16 << 20
MAX_DEPTH = 100


class Moving:
    """Both methods, for files and trees."""

    def __init__(
        self,
        files: Files,
        names: tuple[Namespace, OwnNames],
        guard: Guard,
        changing: Changing,
        copier: Copier,
        *,
        copies: Copies,
    ) -> None:
        self._copies = copies
        self._files = files
        self._namespace, self._own_names = names
        self._guard = guard
        self._changing = changing
        self._copier = copier

    def destination(self, exchange: Exchange) -> Target:
        """Where the Destination header points. Raises BadGateway for another server (RFC 4918 §9.9.4)."""
        value = exchange.headers.get("Destination", "").strip()
        if not value:
            raise BadRequest(f"{exchange.method} needs a Destination")
        if not self._own_names.is_own(value):
            raise BadGateway("the Destination is another server")
        found = self._namespace.locate(path_of(value))
        if not isinstance(found, Target) or not found.path:
            raise Denied("nothing can be put there")
        return found

    async def move(self, exchange: Exchange) -> web.StreamResponse:
        """201, or 204 when something was replaced."""
        destination = self.destination(exchange)
        source = await self._source(exchange, destination)
        there = await self._replaceable(exchange, destination)
        decision = access.member(exchange.verdict, destination.export)
        if decision.allowed:
            capabilities = exchange.verdict.capabilities
            decision = access.may_rename(
                capabilities, exchange.target.vo_path, destination.vo_path, replaces=there is not None
            )
        exchange.decided(decision, "move", destination)
        if destination.export is not exchange.target.export:
            raise Denied("moving from one export to another is a copy and a removal: ask for these")
        await self._guard.change(exchange, exchange.target, deep=True, member=True)
        await self._guard.change(exchange, destination, deep=True, member=there is None)
        if there is not None and (is_directory(there) or is_directory(source)):
            await self._changing.remove(exchange, destination, recursive=True)
        await self._rename(exchange, destination, replace=there is not None)
        await self._guard.gone(exchange.target)
        return Connection(exchange.request).reply(*_done(there))

    async def _rename(self, exchange: Exchange, destination: Target, *, replace: bool) -> None:
        source, target = exchange.target.place, destination.place
        try:
            await self._files.rename(exchange.grant, source, target, replace=replace)
        except NotFound:
            await self._parents(exchange, destination)
            await self._files.rename(exchange.grant, source, target, replace=replace)

    async def copy(self, exchange: Exchange) -> web.StreamResponse:
        """201, 204 when something was replaced, 207 when a part could not be copied; 202 with markers
        when another server is the other end."""
        if self._copies.concerns(exchange):
            return await self._copies.copy(exchange)
        exchange.require(READ)
        destination = self.destination(exchange)
        source = await self._source(exchange, destination)
        there = await self._replaceable(exchange, destination)
        exchange.require(MODIFY if there is not None else CREATE, destination)
        await self._guard.change(exchange, destination, deep=True, member=there is None)
        depth = exchange.headers.get("Depth", "infinity").strip().lower()
        if depth not in ("0", "infinity"):
            raise BadRequest("Depth of COPY is 0 or infinity")
        if there is not None and (is_directory(there) or is_directory(source)):
            await self._changing.remove(exchange, destination, recursive=True)
            await self._guard.gone(destination)
        await self._parents(exchange, destination)
        if not is_directory(source):
            await self._copier.file(exchange, exchange.target, destination, replace=there is not None)
            return Connection(exchange.request).reply(*_done(there))
        failed = await self._tree(exchange, destination, deep=depth == "infinity")
        if failed:
            body = multistatus.failures(failed)
            return web.Response(status=207, body=body, headers={"Content-Type": multistatus.CONTENT_TYPE})
        return Connection(exchange.request).reply(*_done(there))

    async def _tree(
        self, exchange: Exchange, destination: Target, *, deep: bool
    ) -> list[tuple[str, int, str]]:
        """A collection and, when ``deep``, all in it; what fails is told and the rest goes on (§9.8.3)."""
        failed: list[tuple[str, int, str]] = []
        waiting = [(exchange.target, destination, 0)]
        while waiting:
            source, target, depth = waiting.pop()
            try:
                await self._files.mkdir(exchange.grant, target.place)
                await self._copier.properties(exchange, source, target)
                if depth > MAX_DEPTH:
                    raise Conflict("nested too deeply")
                members = await self._files.list(exchange.grant, source.place) if deep else ()
            except EdgeError as error:
                if depth == 0:
                    raise
                failed.append((target.href, status(error), error.message))
                continue
            for member in members:
                inner, outer = source.child(member.name), target.child(member.name)
                if is_directory(member):
                    waiting.append((inner, outer, depth + 1))
                    continue
                try:
                    await self._copier.file(exchange, inner, outer, replace=False)
                except EdgeError as error:
                    failed.append((outer.href, status(error), error.message))
        return failed

    async def _source(self, exchange: Exchange, destination: Target) -> Entry:
        if destination.key == exchange.target.key:
            raise Denied("source and destination are the same")  # RFC 4918 §9.8.5
        if destination.key.startswith(exchange.target.key.rstrip("/") + "/"):
            raise Conflict("the destination lies inside the source")
        entry = await exchange.entry()
        exchange.check_conditions(None if is_directory(entry) else entry)
        return entry

    async def _replaceable(self, exchange: Exchange, destination: Target) -> Entry | None:
        """What is at the destination. Raises PreconditionFailed when Overwrite: F protects it."""
        there = await exchange.look(destination)
        overwrite = exchange.headers.get("Overwrite", "T").strip().upper()
        if overwrite not in ("T", "F"):
            raise BadRequest("Overwrite is T or F")
        if there is not None and overwrite == "F":
            raise PreconditionFailed("the destination exists")
        if there is not None and exchange.target.key.startswith(destination.key + "/"):
            raise Conflict("the source lies inside the destination")
        return there

    async def _parents(self, exchange: Exchange, destination: Target) -> None:
        parent = destination.parent()
        if parent is None or not parent.path:
            return
        if destination.export.create_parents:
            await self._files.mkdir(exchange.grant, parent.place, parents=True)
        elif await exchange.look(parent) is None:
            raise Conflict("the parent collection does not exist")


class Copier:
    """One file to another within the endpoint; the bytes stay in the kernel where it can."""

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
        try:
            temporary = await self._files.temporary(exchange.grant, target.place)
            try:
                await self._bytes(exchange, source, opened.fd, temporary.fd)
                if not unchanged(opened.fd, opened.entry.size, opened.entry.mtime_ns):
                    raise Conflict("the source changed while it was copied")  # noqa: TRY301
                kept = await self._attributes(exchange, source, opened.entry, temporary.fd)
                await self._files.commit(
                    await exchange.renewed(),
                    temporary.place,
                    target.place,
                    replace=replace,
                    durable=self._config.durable,
                    attributes=kept,
                    mtime_ns=opened.entry.mtime_ns,
                )
            except BaseException:
                await quietly(self._files.discard(exchange.grant, temporary.place))
                raise
            finally:
                os.close(temporary.fd)
        finally:
            os.close(opened.fd)

    async def _bytes(self, exchange: Exchange, source: Target, reading: int, writing: int) -> None:
        disk, verdict = self._disk_of(source), exchange.verdict
        stop = False

        def abort() -> None:
            nonlocal stop
            stop = True

        with self._transfers.running("copy", verdict.principal, verdict.account, abort) as transfer:
            try:
                while count := await disk.run(_copy_piece, reading, writing):
                    transfer.moved += count
                    if stop:
                        raise Denied("cut by the site")
            except OSError as error:
                raise of_os(error) from error

    async def _attributes(
        self, exchange: Exchange, source: Target, entry: Entry, fd: int
    ) -> dict[str, bytes]:
        """Digests that are true of the source are true of the copy; they name its own inode and time."""
        known = await self._checksums.stored(exchange.grant, source, entry)
        kept = {}
        if known:
            facts = os.fstat(fd)
            kept = records.to_keep(known, facts.st_size, facts.st_ino, entry.mtime_ns, time.time_ns())
        dead = await self._dead(exchange, source)
        return {**kept, **dead}

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


def _done(there: Entry | None) -> tuple[int, list[tuple[str, str]]]:
    return (201, [("Content-Length", "0")]) if there is None else (204, [])
