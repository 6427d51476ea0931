"""COPY and MOVE within this endpoint."""

from __future__ import annotations

from aiohttp import web

from edged.accounts.api import Entry, Files
from edged.errors import BadRequest, Conflict, Denied, NotFound, PreconditionFailed
from services.storage import access, answers
from services.storage.access import CREATE, MODIFY, READ
from services.storage.changing import Changing
from services.storage.copier import Copier
from services.storage.exchange import Exchange
from services.storage.faults import BadGateway
from services.storage.guard import Guard
from services.storage.multistatus import Refused
from services.storage.namespace import Namespace, OwnNames, Target, path_of
from services.storage.properties import is_directory
from services.storage.sending import Connection
from services.storage.thirdparty.copies import Copies


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
        """201, or 204 when something was replaced; between two exports also what COPY answers."""
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
        across = destination.export is not exchange.target.export
        if across:  # perhaps another file system: copied whole, then removed here
            exchange.require(READ)
            exchange.require(MODIFY)
        await self._guard.change(exchange, exchange.target, deep=True, member=True)
        await self._guard.change(exchange, destination, deep=True, member=there is None)
        if there is not None and (is_directory(there) or is_directory(source)):
            await self._changing.remove(exchange, destination, recursive=True)
        if not across:
            await self._rename(exchange, destination, replace=there is not None)
            await self._guard.gone(exchange.target)
            return Connection(exchange.request).reply(*_done(there))
        with exchange.lasting(exchange.target, destination):
            failed = await self._copied(exchange, destination, source, replace=there is not None)
            if failed:  # what did not arrive stays where it was, and so does all the rest
                return answers.partial(failed)
            await self._changing.remove(exchange, exchange.target, recursive=is_directory(source))
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
        with exchange.lasting(exchange.target, destination):
            failed = await self._copied(
                exchange, destination, source, replace=there is not None, deep=depth == "infinity"
            )
        return answers.partial(failed) if failed else Connection(exchange.request).reply(*_done(there))

    async def _copied(
        self, exchange: Exchange, destination: Target, source: Entry, *, replace: bool, deep: bool = True
    ) -> list[Refused]:
        """A file, whole or by an error not at all; or a collection, and what of it could not be copied."""
        await self._parents(exchange, destination)
        if is_directory(source):
            return await self._copier.tree(exchange, destination, deep=deep)
        await self._copier.file(exchange, exchange.target, destination, replace=replace)
        return []

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


def _done(there: Entry | None) -> tuple[int, list[tuple[str, str]]]:
    return (201, [("Content-Length", "0")]) if there is None else (204, [])
