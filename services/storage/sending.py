"""File bytes onto a connection: sendfile on plain http, 64 KiB writes under TLS, head with the first bytes.

A hot path: no framework layer, no executor hop for cached pages. Benches: tests/bench/storage_get.py.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web

from edged.accounts.api import Entry
from edged.http.request import Request
from services.storage.disk import AHEAD, BLOCK, WINDOW, Disk, Truncated
from services.storage.properties import http_date
from services.storage.ranges import Span
from services.storage.transfers import Transfer

REASONS = {status.value: status.phrase for status in HTTPStatus}


class Sent:
    """A response already on the wire: what aiohttp's protocol and our access log ask of one."""

    __slots__ = ("body_length", "keep_alive", "status")
    prepared = True

    def __init__(self, status: int, length: int, *, keep_alive: bool) -> None:
        self.status = status
        self.body_length = length
        self.keep_alive = keep_alive

    def __contains__(self, _note: object) -> bool:
        """aiohttp's responses carry notes; this one has none."""
        return False

    async def prepare(self, _request: Request) -> None:
        """Nothing is left to do."""

    async def write_eof(self) -> None:
        """Nothing is left to do."""


@dataclass(slots=True)
class Source:
    """An open file to send from. ``transfer`` counts the bytes, when there are many."""

    fd: int
    disk: Disk
    entry: Entry
    transfer: Transfer | None = None

    async def check(self) -> None:
        """Raises Truncated when the file is not what the head promised: nobody gets a mixture as whole."""
        if not await self.disk.unchanged(self.fd, self.entry.size, self.entry.mtime_ns):
            raise Truncated("the file changed while it was read")


class Connection:
    """The connection of one request, written to directly."""

    __slots__ = ("_protocol", "_request", "_tls", "_transport")

    def __init__(self, request: Request) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client left")
        self._request = request
        self._transport = transport
        self._protocol: Any = request.protocol
        self._tls = transport.get_extra_info("sslcontext") is not None

    def abort(self) -> None:
        """Close without a good end: the client must see a broken answer."""
        self._transport.abort()

    def continue_(self) -> None:
        """100 Continue; on the wire at the end of this turn of the loop."""
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def head(self, status: int, headers: Iterable[tuple[str, str]], *, keep_alive: bool) -> bytes:
        """The bytes of a response head. Values come from us or were checked for CR and LF by the parser."""
        lines = [f"HTTP/1.1 {status} {REASONS[status]}"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines.append(f"Date: {http_date(int(time.time()))}")
        if not keep_alive:
            lines.append("Connection: close")
        elif self._request.version.minor == 0:
            lines.append("Connection: keep-alive")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace")

    def reply(self, status: int, headers: Iterable[tuple[str, str]], body: bytes = b"") -> web.StreamResponse:
        """A whole small answer in one write."""
        keep_alive = bool(self._request.keep_alive)
        self._transport.write(self.head(status, headers, keep_alive=keep_alive) + body)
        return self.sent(status, len(body))

    def sent(self, status: int, length: int) -> web.StreamResponse:
        """What aiohttp wants to hear of an answer that is already written."""
        return cast(web.StreamResponse, Sent(status, length, keep_alive=bool(self._request.keep_alive)))

    async def send(self, data: bytes) -> None:
        """Some bytes, waiting while the peer is behind."""
        self._transport.write(data)
        await self.drain()

    async def drain(self) -> None:
        """Wait until the peer has taken enough. Stalls are cut by Transfers."""
        if self._protocol.writing_paused or self._transport.is_closing():
            await self._protocol._drain_helper()

    async def send_span(self, lead: bytes, source: Source, span: Span) -> None:
        """``lead``, then the bytes of the span. Raises Truncated when the file changed meanwhile."""
        fd, disk, transfer = source.fd, source.disk, source.transfer
        at = span.start
        first = min(BLOCK, span.stop - at)
        data = disk.read_cached(fd, first, at)
        if data is None or len(data) < first:
            data = await disk.read(fd, first, at)
        if len(data) < first:
            raise Truncated("file became shorter while it was read")
        at += first
        if transfer is not None:
            transfer.moved += first
        if at == span.stop:
            await source.check()
        if at < span.stop and not self._tls and self._transport.get_write_buffer_size() == 0:
            await self._sendfile(lead + data, source, Span(at, span.stop))
            return
        self._transport.write(lead + data)
        while at < span.stop:
            if self._protocol.writing_paused:
                await self.drain()
            want = min(BLOCK, span.stop - at)
            data = disk.read_cached(fd, want, at)
            if at + (AHEAD if data is None else want) >= span.stop:
                await source.check()
            if data is None or len(data) < want:
                at = await self._write_ahead(source, Span(at, span.stop))
                continue
            at += want
            if transfer is not None:
                transfer.moved += want
            self._transport.write(data)
        await self.drain()

    async def _write_ahead(self, source: Source, span: Span) -> int:
        """What the page cache has not, or cannot tell: one long read in a thread, written in blocks."""
        data = memoryview(await source.disk.read(source.fd, min(AHEAD, span.stop - span.start), span.start))
        if not data:
            raise Truncated("file became shorter while it was read")
        for start in range(0, len(data), BLOCK):
            if self._protocol.writing_paused:
                await self.drain()
            self._transport.write(data[start : start + BLOCK])
        if source.transfer is not None:
            source.transfer.moved += len(data)
        return span.start + len(data)

    async def _sendfile(self, lead: bytes, source: Source, span: Span) -> None:
        """On a duplicate of the socket: uvloop owns the readiness of its own, and has no sendfile."""
        fd, disk, transfer = source.fd, source.disk, source.transfer
        at, stop = span
        sock = os.dup(self._transport.get_extra_info("socket").fileno())
        try:
            await _write_all(sock, lead)
            while at < stop:
                window = min(WINDOW, stop - at)
                if at + window == stop:
                    await source.check()
                try:
                    if disk.resident(fd, at, window):
                        sent = os.sendfile(sock, fd, at, window)
                    else:
                        sent = await disk.run((sock, fd), os.sendfile, sock, fd, at, window)
                except BlockingIOError:
                    await writable(sock)
                    continue
                if sent == 0:
                    raise Truncated("file became shorter while it was read")
                at += sent
                if transfer is not None:
                    transfer.moved += sent
        finally:
            disk.close(sock)


class Chunks:
    """An answer whose length is not known when it begins: in chunks (RFC 9112 §7.1), or up to the close for 1.0."""

    def __init__(self, request: Request, status: int, headers: Iterable[tuple[str, str]]) -> None:
        self._connection = Connection(request)
        self._chunked = request.version.minor > 0
        self._status = status
        self._keep_alive = request.keep_alive and self._chunked
        self._length = 0
        fields = [*headers, ("Transfer-Encoding", "chunked")] if self._chunked else list(headers)
        self._lead = self._connection.head(status, fields, keep_alive=self._keep_alive)

    async def write(self, data: bytes) -> None:
        """Some of it, not empty; the head goes with the first."""
        self._length += len(data)
        framed = b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data
        lead, self._lead = self._lead, b""
        await self._connection.send(lead + framed)

    async def end(self) -> web.StreamResponse:
        """All is written."""
        await self._connection.send(self._lead + (b"0\r\n\r\n" if self._chunked else b""))
        return cast(web.StreamResponse, Sent(self._status, self._length, keep_alive=self._keep_alive))


async def _write_all(sock: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sock, view) :]
        except BlockingIOError:
            await writable(sock)


async def writable(sock: int) -> None:
    """Until the socket takes bytes again, or is broken (then the next call on it raises)."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
