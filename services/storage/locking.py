"""LOCK and UNLOCK (RFC 4918 §9.10, §9.11)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from xml.sax.saxutils import escape as xml_escape

from aiohttp import web

from edged.accounts.api import Files
from edged.errors import BadRequest, Conflict, Denied, NotFound, PreconditionFailed
from edged.http.api import read_body
from edged.http.request import parsed
from services.storage.access import CREATE, MODIFY
from services.storage.davxml import LockRequest, parse_lockinfo
from services.storage.disk import Disk
from services.storage.exchange import Exchange
from services.storage.guard import Guard
from services.storage.locks import Lock, active_lock_xml, parse_if, parse_timeout, tokens_in
from services.storage.namespace import Target
from services.storage.sending import Connection

MAX_OWNER = 4096


class Locking:
    """Both methods."""

    def __init__(self, files: Files, guard: Guard, disk_of: Callable[[Target], Disk], xml_body: int) -> None:
        self._files = files
        self._guard = guard
        self._disk_of = disk_of
        self._xml_body = xml_body

    async def lock(self, exchange: Exchange) -> web.StreamResponse:
        """200 for a lock on what exists or a refresh, 201 for one that made an empty file."""
        body = await read_body(parsed(exchange.request), self._xml_body)
        entry = await exchange.look()
        exchange.require(MODIFY if entry is not None else CREATE)
        exchange.check_conditions(entry)
        if not body.strip():
            return await self._refresh(exchange)
        asked = parse_lockinfo(body)
        await self._check_if(exchange)
        lock = self._made(exchange, asked)
        if entry is None:
            await self._guard.change(exchange, exchange.target, member=True)
        async with self._guard.locks.changing() as table:
            table.add(lock)
        if entry is None:
            await self._empty_file(exchange, lock)
        return _answer(lock, 200 if entry is not None else 201, token=lock.token)

    async def _check_if(self, exchange: Exchange) -> None:
        if "If" in exchange.headers:
            await self._guard.condition(exchange)

    def _made(self, exchange: Exchange, asked: LockRequest) -> Lock:
        depth = exchange.headers.get("Depth", "infinity").strip().lower()
        if depth not in ("0", "infinity"):
            raise BadRequest("Depth of LOCK is 0 or infinity")
        if len(asked.owner) > MAX_OWNER:
            raise BadRequest("owner is too long")
        timeout = parse_timeout(exchange.headers.get("Timeout"), self._guard.locks.longest_s)
        return Lock(
            token=f"urn:uuid:{uuid.uuid4()}",
            key=exchange.target.key,
            href=exchange.target.href,
            deep=depth == "infinity",
            exclusive=asked.exclusive,
            owner=asked.owner,
            holder=exchange.holder,
            timeout_s=timeout,
            expires_at=time.time() + timeout,
        )

    async def _empty_file(self, exchange: Exchange, lock: Lock) -> None:
        """A lock on an unmapped URL makes an empty resource (§7.3)."""
        place = exchange.target.place
        try:
            temporary = await self._files.temporary(exchange.grant, place)
            self._disk_of(exchange.target).close(temporary.fd)
            await self._files.commit(exchange.grant, temporary.place, place, replace=False, durable=False)
        except BaseException as error:
            async with self._guard.locks.changing() as table:
                table.remove(lock.token)
            if isinstance(error, NotFound):
                raise Conflict("the parent collection does not exist") from error
            raise

    async def _refresh(self, exchange: Exchange) -> web.StreamResponse:
        """No body: the lock named in If lives on (§9.10.2)."""
        header = exchange.headers.get("If")
        if header is None:
            raise BadRequest("LOCK without a body refreshes, and needs an If header")
        tokens = tokens_in(parse_if(header))
        timeout = parse_timeout(exchange.headers.get("Timeout"), self._guard.locks.longest_s)
        async with self._guard.locks.changing() as table:
            for token in tokens:
                lock = table.get(token)
                if lock is not None and lock.covers(exchange.target.key) and lock.holder == exchange.holder:
                    return _answer(table.refresh(token, timeout, time.time()), 200)
        raise PreconditionFailed("no such lock here")

    async def unlock(self, exchange: Exchange) -> web.StreamResponse:
        """204; 409 when the token locks nothing here (§9.11.1)."""
        token = exchange.headers.get("Lock-Token", "").strip().strip("<>")
        if not token:
            raise BadRequest("UNLOCK needs a Lock-Token")
        async with self._guard.locks.changing() as table:
            lock = table.get(token)
            if lock is None or not lock.covers(exchange.target.key):
                raise Conflict("no such lock here")
            if lock.holder != exchange.holder:
                raise Denied("somebody else's lock")
            table.remove(token)
        return Connection(exchange.request).reply(204, [])


def _answer(lock: Lock, status: int, *, token: str = "") -> web.Response:
    active = active_lock_xml(lock, time.time(), xml_escape(lock.href))
    body = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<D:prop xmlns:D="DAV:"><D:lockdiscovery>{active}</D:lockdiscovery></D:prop>\n'
    )
    headers = {"Content-Type": 'application/xml; charset="utf-8"'}
    if token:
        headers["Lock-Token"] = f"<{token}>"
    return web.Response(status=status, body=body.encode(), headers=headers)
