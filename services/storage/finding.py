"""PROPFIND and PROPPATCH."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from aiohttp import web

from edged.accounts.api import Entry, Files, Kind
from edged.config.storage import Storage
from edged.errors import BadRequest, EdgeError, TooLarge
from edged.http.api import read_body
from edged.http.request import parsed
from services.storage import answers, multistatus
from services.storage.access import MODIFY, READ, STAT
from services.storage.davxml import DAV, Name, Propfind, parse_propfind, parse_proppatch
from services.storage.exchange import Exchange
from services.storage.faults import InfinityRefused
from services.storage.guard import Guard
from services.storage.locks import LockTable
from services.storage.multistatus import Pieces
from services.storage.namespace import Above, Target, escape
from services.storage.properties import (
    DEAD,
    LIVE,
    PROTECTED,
    QUOTA,
    Resource,
    changed,
    dead_of,
    is_directory,
    packed,
)
from services.storage.space import Spaces

LOCKS = Name(DAV, "lockdiscovery")


class Finding:
    """Listing and properties."""

    def __init__(self, config: Storage, files: Files, spaces: Spaces, guard: Guard) -> None:
        self._config = config
        self._files = files
        self._spaces = spaces
        self._guard = guard

    async def propfind(self, exchange: Exchange) -> web.StreamResponse:
        """207 with the resource and, at Depth 1, its members."""
        exchange.require(STAT)
        request = parse_propfind(await read_body(parsed(exchange.request), self._config.xml_body))
        entry = await exchange.entry()
        depth = self._depth(exchange, entry)
        if depth and is_directory(entry):
            exchange.require(READ)
        table = await self._guard.locks.now()
        first = await self._target(exchange, request, entry, table)
        parts = Pieces(request)
        members = self._members(exchange, request, parts, table, depth if is_directory(entry) else 0)
        with exchange.lasting(exchange.target):
            return await _respond(parsed(exchange.request), parts, first, members)

    def _depth(self, exchange: Exchange, entry: Entry) -> int:
        """0, 1, or the most levels for infinity. No Depth header counts as 1: nobody means the whole tree."""
        value = exchange.headers.get("Depth", "1").strip().lower()
        if value in ("0", "1"):
            return int(value)
        if value == "infinity":
            if self._config.depth_infinity or not is_directory(entry):
                return 1000
            raise InfinityRefused("Depth: infinity is not answered here")
        raise BadRequest("Depth is 0, 1 or infinity")

    async def _target(
        self, exchange: Exchange, request: Propfind, entry: Entry, table: LockTable
    ) -> Resource:
        target = exchange.target
        collection = is_directory(entry)
        resource = _resource(target, entry, table)
        if _wants_dead(request):
            resource.dead = await self._dead(exchange, target)
        if collection and (request.kind == "allprop" or not QUOTA.isdisjoint(request.names)):
            resource.space = await self._spaces.of(exchange, target)
        return resource

    async def _dead(self, exchange: Exchange, target: Target) -> dict[Name, str]:
        try:
            return dead_of(await self._files.attributes(exchange.grant, target.place))
        except EdgeError:  # no user attributes on this file system, or not readable: none to show
            return {}

    async def _members(
        self, exchange: Exchange, request: Propfind, parts: Pieces, table: LockTable, depth: int
    ) -> AsyncIterator[Iterable[bytes]]:
        """The pieces of each directory; names wanted by dead property are looked up one member at a time."""
        waiting = [(exchange.target, depth)] if depth else []
        left = self._config.listing
        named_dead = request.kind == "prop" and any(name not in LIVE for name in request.names)
        while waiting:
            target, levels = waiting.pop()
            entries = await self._files.list(exchange.grant, target.place, limit=left)
            left -= len(entries)
            if left < 0:
                raise TooLarge(f"listing over {self._config.listing} entries")
            if levels > 1:
                deeper = [e for e in entries if e.kind is Kind.DIRECTORY]
                waiting += [(target.child(e.name), levels - 1) for e in deeper]
            if parts.plain and not len(table):
                yield parts.listed(_slashed(target.href), entries)
            elif named_dead:
                members = _of_entries(target, entries, table)
                yield parts.of([await self._with_dead(exchange, target, m) for m in members])
            else:
                yield parts.of(_of_entries(target, entries, table))

    async def _with_dead(self, exchange: Exchange, target: Target, member: Resource) -> Resource:
        member.dead = await self._dead(exchange, target.child(member.name))
        return member

    async def above(self, request: web.BaseRequest, above: Above, vo: str) -> web.StreamResponse:
        """PROPFIND on a collection that only leads to exports."""
        asked = parse_propfind(await read_body(request, self._config.xml_body))
        depth = request.headers.get("Depth", "1")
        first = Resource(_slashed(above.href), above.href.rpartition("/")[2], True, None)
        shown = [export for export in above.exports if depth != "0" and export.vo == vo]
        members = [Resource(export.prefix + "/", export.label, True, None) for export in shown]

        parts = Pieces(asked)

        async def pieces() -> AsyncIterator[Iterable[bytes]]:
            yield parts.of(members)

        return await _respond(request, parts, first, pieces())

    async def proppatch(self, exchange: Exchange) -> web.StreamResponse:
        """All changes or none (RFC 4918 §9.2); live properties are protected."""
        exchange.require(MODIFY)
        changes = parse_proppatch(await read_body(parsed(exchange.request), self._config.xml_body))
        entry = await exchange.entry()
        exchange.check_conditions(None if is_directory(entry) else entry)
        await self._guard.change(exchange, exchange.target)
        names = [change.name for change in changes]
        if any(name in PROTECTED for name in names):
            statuses = [403 if name in PROTECTED else 424 for name in names]
        else:
            place = exchange.target.place
            before = dead_of(await self._files.attributes(exchange.grant, place))
            after = changed(before, changes)
            put = {DEAD: packed(after)} if after else {}
            await self._files.set_attributes(exchange.grant, place, put, [] if after else [DEAD])
            statuses = [200] * len(names)
        href = _href_of(exchange.target, collection=is_directory(entry))
        return answers.document(multistatus.patched(href, names, statuses))


def _wants_dead(request: Propfind) -> bool:
    return request.kind != "prop" or any(name not in LIVE for name in request.names)


def _slashed(href: str) -> str:
    return href if href.endswith("/") else href + "/"


def _href_of(target: Target, *, collection: bool) -> str:
    """As the client wrote it; collections end in a slash (RFC 4918 §5.2)."""
    return _slashed(target.href) if collection else target.href


def _resource(target: Target, entry: Entry, table: LockTable) -> Resource:
    collection = is_directory(entry)
    locks = tuple(table.covering(target.key)) if len(table) else ()
    return Resource(
        _href_of(target, collection=collection), target.name, collection, entry, locks=locks, now=time.time()
    )


def _of_entries(target: Target, entries: Sequence[Entry], table: LockTable) -> Iterator[Resource]:
    """A hot path: no Target per member unless there are locks to look up."""
    base = _slashed(target.href)
    for entry in entries:
        if len(table):
            yield _resource(target.child(entry.name), entry, table)
            continue
        collection = entry.kind is Kind.DIRECTORY
        href = f"{base}{escape(entry.name)}/" if collection else base + escape(entry.name)
        yield Resource(href, entry.name, collection, entry)


async def _respond(
    request: web.BaseRequest, parts: Pieces, first: Resource, directories: AsyncIterator[Iterable[bytes]]
) -> web.StreamResponse:
    """In one piece when short, else chunked: memory does not grow with the listing's text."""
    response: web.StreamResponse | None = None
    held = b"".join(parts.of((first,)))
    async for pieces in directories:
        for piece in pieces:
            if response is None:
                response = web.StreamResponse(status=207, headers={"Content-Type": multistatus.CONTENT_TYPE})
                await response.prepare(request)
            await response.write(held + piece)
            held = b""
    rest = held + parts.end()
    if response is None:
        return answers.document(rest)
    await response.write_eof(rest)
    return response
