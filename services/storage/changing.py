"""MKCOL and DELETE."""

from __future__ import annotations

import os

from aiohttp import web

from edged.accounts.api import Files
from edged.accounts.faults import of_code
from edged.errors import Conflict, EdgeError, Incomplete, NotFound
from services.storage import answers, faults
from services.storage.access import CREATE, MODIFY
from services.storage.exchange import Exchange
from services.storage.faults import MethodRefused, UnsupportedBody
from services.storage.guard import Guard
from services.storage.multistatus import Refused
from services.storage.namespace import Target, escape
from services.storage.properties import is_directory
from services.storage.sending import Connection

ALLOW_FILE = "OPTIONS, GET, HEAD, PUT, DELETE, PROPFIND, PROPPATCH, COPY, MOVE, LOCK, UNLOCK"
ALLOW_COLLECTION = "OPTIONS, GET, HEAD, DELETE, PROPFIND, PROPPATCH, COPY, MOVE, LOCK, UNLOCK"


class Changing:
    """Making and removing."""

    def __init__(self, files: Files, guard: Guard) -> None:
        self._files = files
        self._guard = guard

    async def mkcol(self, exchange: Exchange) -> web.StreamResponse:
        """201; 405 when something is there (RFC 4918 §9.3.1)."""
        exchange.require(CREATE)
        if exchange.request.body_exists and exchange.request.content_length != 0:
            raise UnsupportedBody("MKCOL takes no body")
        there = await exchange.look()
        if there is not None:
            allow = ALLOW_COLLECTION if is_directory(there) else ALLOW_FILE
            raise MethodRefused("it exists already", allow=allow)
        await self._guard.change(exchange, exchange.target, member=True)
        try:
            await self._files.mkdir(
                exchange.grant, exchange.target.place, parents=exchange.target.export.create_parents
            )
        except NotFound as error:
            raise Conflict("the parent collection does not exist") from error
        except Conflict as error:
            if await exchange.look() is not None:  # somebody was faster
                raise MethodRefused("it exists already", allow=ALLOW_COLLECTION) from error
            raise
        return Connection(exchange.request).reply(201, [("Content-Length", "0")])

    async def delete(self, exchange: Exchange) -> web.StreamResponse:
        """204, whole trees included (exactly 204: Rucio takes nothing else); 207 when a part resisted."""
        exchange.require(MODIFY)
        entry = await exchange.entry()
        exchange.check_conditions(None if is_directory(entry) else entry)
        if exchange.headers.get("Depth", "infinity").lower() != "infinity" and is_directory(entry):
            raise Conflict("a collection is deleted with all it holds")  # RFC 4918 §9.6.1
        await self._guard.change(exchange, exchange.target, deep=True, member=True)
        try:
            await self.remove(exchange, exchange.target, recursive=is_directory(entry))
        except Incomplete as error:
            return answers.partial(_refused(exchange.target, error))
        await self._prune(exchange)
        return Connection(exchange.request).reply(204, [])

    async def remove(self, exchange: Exchange, target: Target, *, recursive: bool) -> None:
        """Remove it and forget its locks. Raises what the file system says."""
        await self._files.remove(exchange.grant, target.place, recursive=recursive)
        await self._guard.gone(target)

    async def _prune(self, exchange: Exchange) -> None:
        """Directories left empty go too, as many levels up as the export wants (Rucio never removes them)."""
        target: Target | None = exchange.target
        for _ in range(exchange.target.export.prune):
            target = target.parent() if target is not None else None
            if target is None or not target.path or not exchange.allows(MODIFY, target):
                return
            try:
                await self._files.remove(exchange.grant, target.place)
            except EdgeError:  # not empty: somebody lives there
                return


def _refused(top: Target, error: Incomplete) -> list[Refused]:
    """The members that resisted. Collections above them are not told (RFC 4918 §9.6.1)."""
    base = top.href.rstrip("/")
    return [
        Refused(f"{base}/{_href(path)}", faults.status(of_code(code, why)), why)
        for path, (code, why) in error.failed.items()
    ]


def _href(path: bytes) -> str:
    return "/".join(escape(os.fsdecode(name)) for name in path.split(b"/"))
