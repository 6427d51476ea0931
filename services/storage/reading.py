"""GET and HEAD."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext

from aiohttp import web

from edged.accounts.api import Entry, Files, OpenFile
from edged.errors import Conflict, EdgeError, NotFound, PreconditionFailed
from edged.logs import get_logger
from services.storage import conditions, digests, ranges
from services.storage.access import READ, STAT
from services.storage.checksums import Checksums
from services.storage.conditions import Outcome, etag
from services.storage.disk import BLOCK, Disk
from services.storage.exchange import Exchange
from services.storage.namespace import Target
from services.storage.properties import SECOND_NS, http_date, is_directory, media_type
from services.storage.ranges import Multipart, Span
from services.storage.sending import Connection, Source
from services.storage.transfers import Transfer, Transfers

log = get_logger("edged.storage.reading")

Headers = list[tuple[str, str]]


class Reading:
    """The two reading methods. ``index`` answers GET on a collection."""

    def __init__(
        self,
        files: Files,
        disk_of: Callable[[Target], Disk],
        checksums: Checksums,
        transfers: Transfers,
        index: Callable[[Exchange, Entry], Awaitable[web.StreamResponse]],
    ) -> None:
        self._files = files
        self._disk_of = disk_of
        self._checksums = checksums
        self._transfers = transfers
        self._index = index

    async def head(self, exchange: Exchange) -> web.StreamResponse:
        """The headers GET would send; a digest is computed only for those who may read."""
        exchange.require(STAT)
        entry = await exchange.entry()
        if is_directory(entry):
            return Connection(exchange.request).reply(200, [*_of_directory(entry), ("Content-Length", "0")])
        if exchange.target.collection:
            raise NotFound("not a collection")
        outcome = conditions.evaluate("HEAD", exchange.headers, entry)
        extra = await self._digests(exchange, entry)
        return _without_body(exchange, entry, outcome, extra) or Connection(exchange.request).reply(
            200, [*_of_file(exchange.target, entry), ("Content-Length", str(entry.size)), *extra]
        )

    async def get(self, exchange: Exchange) -> web.StreamResponse:
        """A file, parts of it, or the index of a collection."""
        exchange.require(READ)
        if exchange.target.collection or not exchange.target.path:
            entry = await exchange.entry()
            if is_directory(entry):
                return await self._index(exchange, entry)
            raise NotFound("not a collection")
        try:
            opened = await self._files.open(exchange.grant, exchange.target.place)
        except Conflict:
            entry = await exchange.entry()
            if is_directory(entry):
                return await self._index(exchange, entry)
            raise
        try:
            return await self._send(exchange, opened)
        finally:
            self._disk_of(exchange.target).close(opened.fd)

    async def _send(self, exchange: Exchange, opened: OpenFile) -> web.StreamResponse:
        entry = opened.entry
        headers = exchange.headers
        extra: Headers = []
        if "Want-Digest" in headers or "Want-Repr-Digest" in headers:
            extra = await self._digests(exchange, entry)
        outcome = conditions.evaluate("GET", headers, entry)
        if (early := _without_body(exchange, entry, outcome, extra)) is not None:
            return early
        spans: list[Span] | None = None
        wanted = headers.get("Range")
        if wanted is not None and conditions.range_still_valid(headers.get("If-Range"), entry, time.time()):
            try:
                spans = ranges.parse(wanted, entry.size)
            except ranges.Unsatisfiable:
                return Connection(exchange.request).reply(
                    416, [("Content-Range", f"bytes */{entry.size}"), ("Content-Length", "0")]
                )
        return await self._body(exchange, opened, spans, extra)

    async def _body(
        self, exchange: Exchange, opened: OpenFile, spans: list[Span] | None, extra: Headers
    ) -> web.StreamResponse:
        entry = opened.entry
        head = _of_file(exchange.target, entry) + extra
        status, multipart = 200, None
        if spans is None:
            spans, length = [Span(0, entry.size)], entry.size
        elif len(spans) == 1:
            status, length = 206, spans[0].stop - spans[0].start
            head.append(("Content-Range", f"bytes {spans[0].start}-{spans[0].stop - 1}/{entry.size}"))
        else:
            multipart = Multipart(secrets.token_hex(12), entry.size, spans, media_type(exchange.target.name))
            status, length = 206, multipart.length()
            head = [(n, v) if n != "Content-Type" else (n, multipart.content_type) for n, v in head]
        head.append(("Content-Length", str(length)))
        connection = Connection(exchange.request)
        lead = connection.head(status, head, keep_alive=bool(exchange.request.keep_alive))
        pieces = [(lead, spans[0] if length else None)] if multipart is None else list(multipart.pieces())
        if multipart is not None:
            pieces[0] = (lead + pieces[0][0], pieces[0][1])
        await self._stream(exchange, connection, opened, pieces, length)
        return connection.sent(status, length)

    async def _stream(
        self,
        exchange: Exchange,
        connection: Connection,
        opened: OpenFile,
        pieces: list[tuple[bytes, Span | None]],
        length: int,
    ) -> None:
        """All pieces; on any failure the connection is cut, because the head has promised the rest."""
        verdict = exchange.verdict
        counted: AbstractContextManager[Transfer | None] = nullcontext()
        if length > BLOCK:
            counted = self._transfers.running("read", verdict.principal, verdict.account, connection.abort)
        else:
            self._transfers.brief("read", verdict.vo, verdict.account, length)
        source = Source(opened.fd, self._disk_of(exchange.target), opened.entry)
        try:
            with counted as transfer:
                source.transfer = transfer
                for lead, span in pieces:
                    if span is None:
                        await connection.send(lead)
                    else:
                        await connection.send_span(lead, source, span)
        except (EdgeError, OSError) as error:
            log.info("answer broken off", extra={"path": exchange.target.key, "reason": str(error)})
            connection.abort()
            raise ConnectionResetError("answer broken off") from error

    async def _digests(self, exchange: Exchange, entry: Entry) -> Headers:
        old, new = digests.wanted(exchange.headers)
        asked = {algorithm for algorithm in (old, new) if algorithm is not None}
        if not asked:
            return []
        known = await self._checksums.answer(exchange, entry, asked, compute=exchange.allows(READ))
        return list(digests.answer_headers(old, new, known).items())


def _of_file(target: Target, entry: Entry) -> Headers:
    return [
        ("Content-Type", media_type(target.name)),
        ("ETag", etag(entry)),
        ("Last-Modified", http_date(entry.mtime_ns // SECOND_NS)),
        ("Accept-Ranges", "bytes"),
        ("X-Content-Type-Options", "nosniff"),
    ]


def _of_directory(entry: Entry) -> Headers:
    return [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Last-Modified", http_date(entry.mtime_ns // SECOND_NS)),
    ]


def _without_body(
    exchange: Exchange, entry: Entry, outcome: Outcome, extra: Headers
) -> web.StreamResponse | None:
    if outcome is Outcome.FAILED:
        raise PreconditionFailed("a precondition of the request does not hold")
    if outcome is Outcome.NOT_MODIFIED:
        shown = [h for h in _of_file(exchange.target, entry) if h[0] in ("ETag", "Last-Modified")]
        return Connection(exchange.request).reply(304, shown + extra)
    return None
