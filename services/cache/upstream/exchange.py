"""One connection to an upstream and the exchanges on it, one at a time.

The body comes as chunks; when nobody takes them the socket is not read (flow control), so a slow disk
or client never grows a buffer beyond HIGH_WATER.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import httptools

from edged.errors import Upstream

HIGH_WATER = 512 << 10
LOW_WATER = 128 << 10
MAX_HEAD = 64 << 10


class Reply:
    """An upstream's answer. Read ``chunks()`` to the end or call ``close()``."""

    __slots__ = ("_connection", "_give_back", "fields", "headers", "length", "status", "until_close")

    def __init__(
        self,
        connection: Connection,
        status: int,
        headers: list[tuple[str, str]],
        give_back: Callable[[bool], None],
    ) -> None:
        self._connection = connection
        self._give_back = give_back
        self.status = status
        self.headers = headers
        self.fields = {name.lower(): value for name, value in headers}
        length = self.fields.get("content-length", "")
        self.length = int(length) if length.isdigit() and len(length) < 16 else None
        self.until_close = (
            self.length is None and "transfer-encoding" not in self.fields and status not in (204, 304)
        )

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Upstream when it ends before it should."""
        try:
            while (chunk := await self._connection.take()) is not None:
                yield chunk
        except BaseException:
            self.close()
            raise
        self._give_back(self._connection.reusable)

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises Upstream when it is longer than ``limit`` or cut short."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit:
                self.close()
                raise Upstream("an upstream sent more than its limit", limit=limit)
        return bytes(body)

    def close(self) -> None:
        """Drop the connection with whatever is still to come; harmless after the end."""
        self._give_back(False)


class Connection(asyncio.Protocol):
    """A keep-alive connection to one upstream."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._head: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._status = 0
        self._complete = True
        self._keep_alive = False
        self._failure: str | None = None
        self.closed = False
        self.idle_since = 0.0
        self.answered = False

    # what the origin calls

    async def exchange(self, request: bytes, give_back: Callable[[bool], None]) -> Reply:
        """Send ``request`` and wait for the head of the answer. Raises Upstream."""
        assert self._transport is not None and self._complete
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._head_bytes, self._status = [], 0, 0
        self._complete, self.answered = False, False
        self._head = self._loop.create_future()
        self._transport.write(request)
        await self._head
        return Reply(self, self._status, self._headers, give_back)

    async def take(self) -> bytes | None:
        """The next chunk of the body, or None at its end."""
        while not self._chunks:
            if self._complete:
                return None
            if self._failure is not None:
                raise Upstream("an upstream broke off", detail=self._failure)
            self._waiter = self._loop.create_future()
            await self._waiter
        chunk = self._chunks.popleft()
        self._buffered -= len(chunk)
        if self._paused and self._buffered < LOW_WATER and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    @property
    def reusable(self) -> bool:
        """The exchange ended cleanly and the connection is worth keeping."""
        return self._complete and self._keep_alive and not self.closed and not self._chunks

    def close(self) -> None:
        """Close now."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "abort")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._complete:  # bytes nobody asked for
            self._fail("sent more than it promised")
            self.close()
            return
        if not self.answered and not self._status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._complete:
                self._fail(f"not HTTP: {type(error).__name__}")
            self.close()
        if self._head_bytes > MAX_HEAD and not self.answered:
            self._fail("head too large")
            self.close()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._complete:
            return
        if self.answered and error is None and self._ends_by_close():
            self._keep_alive = False
            self._complete = True
            self._wake()
        else:
            self._fail(str(error) if error else "closed before the end")

    # what httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._headers = []
            return
        self._status, self.answered = status, True
        self._keep_alive = self._parser.should_keep_alive()
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def on_body(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        if self._buffered > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self.answered:
            self._complete = True
            self._wake()

    def _ends_by_close(self) -> bool:
        names = {name.lower() for name, _ in self._headers}
        return not names & {"content-length", "transfer-encoding"}

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, why: str) -> None:
        if self._failure is None:
            self._failure = why
        if self._head is not None and not self._head.done():
            self._head.set_exception(Upstream("an upstream did not answer", detail=why))
            with suppress(Upstream):  # a head nobody awaits any more is not an unhandled error
                self._head.exception()
        self._wake()
