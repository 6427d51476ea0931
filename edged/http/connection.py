"""One connection: aiohttp's protocol, within our limits on the size and the time of what a client sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler

from edged.config.site import HttpLimits
from edged.errors import BadRequest, EdgeError, HeadTooLarge
from edged.http.head import REQUEST_LINE
from edged.http.problems import answer

LINGER_S = 2.0  # a client that was refused may take this long to hear it


class Connection(RequestHandler):
    """Gives its place back when it ends. A head may take ``header_s``, a silence within a body ``idle_s``."""

    __slots__ = ("_body", "_head", "_heard_at", "_limits", "_on_close", "_timer", "source")

    def __init__(
        self,
        server: web.Server,
        limits: HttpLimits,
        *,
        source: str,
        on_close: Callable[[Connection], None],
    ) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **server._kwargs)
        self.source = source
        self._limits = limits
        self._on_close: Callable[[Connection], None] | None = on_close
        self._head = 0  # bytes of a head that is not complete
        self._body: StreamReader | None = None  # of the request that came last
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Pass them on; count those of an incomplete head and set its deadline, or that of a body."""
        if self._close or self._force_close:
            return
        before, in_body = self._request_count, self._in_body()
        super().data_received(data)
        if self._request_count != before:
            self._head, self._body = 0, self._messages[-1][1]
            self._watch(self._limits.idle_s if self._in_body() else None)
        elif in_body:
            self._heard_at = self._loop.time()
        elif data:
            self._head += len(data)
            if self._timer is None:
                self._watch(self._limits.header_s)
            if self._head > self._limits.header_bytes + REQUEST_LINE:
                self._refuse(HeadTooLarge("the request's head is too large"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP is answered like every other error, and the connection ends with it."""
        if request.writer.output_size > 0:  # another head in the middle of an answer would pass for content
            raise ConnectionResetError("the answer had begun")
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        response = answer(BadRequest("not a valid HTTP request"))
        response.force_close()
        return response

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count the place free, then aiohttp's own clean-up."""
        self._watch(None)
        self.release()
        super().connection_lost(exc)

    def release(self) -> None:
        """Give the place back once."""
        if self._on_close is not None:
            self._on_close(self)
            self._on_close = None

    def _in_body(self) -> bool:
        return self._body is not None and not self._body.is_eof()

    def _watch(self, seconds: float | None) -> None:
        """Look after this long whether the client still sends what it began to send; None: it need not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._heard_at = self._loop.time()
            self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._in_body():
            silent_s = self._loop.time() - self._heard_at
            if self._reading_paused or silent_s < self._limits.idle_s:  # paused: it waits for us
                self._timer = self._loop.call_later(self._limits.idle_s, self._look)
                return
        elif self._current_request is not None or not self._head:
            return  # it waits for an answer, and may wait longer
        self.force_close()

    def _refuse(self, error: EdgeError) -> None:
        """The last word to a client whose request cannot even be read."""
        if self.transport is not None and self._current_request is None:
            response = answer(error)
            body = response.body if isinstance(response.body, bytes) else b""
            lines = (f"HTTP/1.1 {response.status} {response.reason}", f"Content-Length: {len(body)}")
            head = (*lines, f"Content-Type: {response.content_type}", "Connection: close", "", "")
            self.transport.write("\r\n".join(head).encode() + body)
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.close()  # what still comes is read and dropped for a while: a reset would destroy our answer
            self._watch(None)
            self._timer = self._loop.call_later(LINGER_S, self.force_close)
        else:
            self.force_close()
