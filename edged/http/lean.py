"""A connection whose plain requests are read by us, and all others by aiohttp, in the order they come.

``head.parse`` decides on whole heads. What it does not understand goes to aiohttp with all that follows, for
good; what it does, but is no method of ours, goes there exactly to the end of its body, so that both always
agree where the next request begins. One request is answered at a time, on either way.
Benches: tests/bench/storage_small.py, storage_large.py.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

from aiohttp import web

from edged.config.site import HttpLimits
from edged.errors import BadRequest, HeadTooLarge
from edged.http.body import Pulled
from edged.http.connection import LINGER_S, Connection
from edged.http.head import END, REQUEST_LINE, Head, parse
from edged.http.request import Lean, Request
from edged.http.stream import Stream
from edged.logs import get_logger

log = get_logger("edged.http")

_BARE = re.compile(rb"(?<!\r)\n|\x00")  # no head with one of these is plain
_PLAIN_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class LeanConnection(Connection):
    """``methods``: those that ``answer`` takes from either way."""

    __slots__ = (
        "_ahead",
        "_answer",
        "_given_up",
        "_held",
        "_idle",
        "_lean",
        "_methods",
        "_owed",
        "_seen",
        "_task",
    )

    def __init__(
        self,
        server: web.Server,
        limits: HttpLimits,
        *,
        source: str,
        on_close: Callable[[Connection], None],
        methods: frozenset[str],
        answer: Callable[[Request], Awaitable[web.StreamResponse]],
    ) -> None:
        super().__init__(server, limits, source=source, on_close=on_close)
        self._methods = methods
        self._answer = answer
        self._ahead = bytearray()  # what nobody has looked at
        self._seen = 0  # bytes of it that hold no end of a head
        self._owed = 0  # bytes of a body that are aiohttp's
        self._given_up = False  # all that comes is aiohttp's
        self._held = False  # we stopped listening, because much is ahead
        self._lean: Lean | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def _waiter(self) -> asyncio.Future[None] | None:
        """aiohttp waits on it for a request: then, and only then, the next one may be ours."""
        return self._idle

    @_waiter.setter
    def _waiter(self, waiter: asyncio.Future[None] | None) -> None:
        self._idle: asyncio.Future[None] | None = waiter
        if waiter is not None and self._ahead:
            self._loop.call_soon(self._advance)

    # --- what comes

    def data_received(self, data: bytes) -> None:
        """Give it to whom it belongs."""
        if self._close or self._force_close:
            return
        if self._given_up or not data:  # aiohttp calls it without data to parse what it has kept
            super().data_received(data)
            return
        if self._owed:
            data = self._pay(data)
        if data:
            self._ahead += data
            self._advance()

    def _pay(self, data: bytes) -> bytes:
        """aiohttp's part of it; the rest is returned."""
        part, rest = data[: self._owed], data[self._owed :]
        self._owed -= len(part)
        super().data_received(part)
        if (
            not self._owed and self._in_body()
        ):  # it does not see the end, or not yet: so it keeps what follows
            self._given_up = True
            super().data_received(rest)
            return b""
        return rest

    @property
    def _busy(self) -> bool:
        idle = self._idle is not None and not self._idle.done() and not self._messages
        return self._task is not None or self._owed > 0 or not idle

    def _advance(self) -> None:
        """Begin with the next request, if it is its turn and its head has come."""
        while self._ahead and not (self._busy or self._close or self._force_close):
            end = self._ahead.find(END, max(0, self._seen - len(END) + 1)) + len(END)
            if end < len(END):
                self._incomplete()
                break
            head = parse(self._ahead[:end])
            if head is not None and head.method in self._methods and (head.bodiless or head.method == "PUT"):
                self._begin(head, end)
            else:
                self._pass_on(head, end)
        self._hold()

    def _hold(self) -> None:
        """Who pipelines much waits. aiohttp has its own say while it takes a body."""
        transport = self.transport
        if transport is None:
            return
        if self._busy and len(self._ahead) > self._most:
            self._held = True
            transport.pause_reading()
        elif self._held and self._task is None:
            self._held = False
            if not (self._reading_paused or self._buffer_paused):
                transport.resume_reading()

    @property
    def _most(self) -> int:
        return self._limits.header_bytes + REQUEST_LINE

    def _incomplete(self) -> None:
        if not self._ahead[:1].isupper() or _BARE.search(self._ahead, max(0, self._seen - 1)):
            self._pass_on(None, 0)
            return
        self._seen = len(self._ahead)
        self._head = len(self._ahead)
        if self._timer is None:
            self._watch(self._limits.header_s)
        if self._head > self._most:
            self._refuse(HeadTooLarge("the request's head is too large"))

    def _pass_on(self, head: Head | None, end: int) -> None:
        """To aiohttp: one request, when both understand where it ends, else all that follows."""
        self._head = self._seen = 0
        self._watch(None)
        if head is None or head.chunked:
            self._given_up = True
            count = len(self._ahead)
        else:
            whole = end + (head.length or 0)
            count = min(whole, len(self._ahead))
            self._owed = whole - count
        data = bytes(self._ahead[:count])
        del self._ahead[:count]
        before = self._request_count
        super().data_received(data)
        if self._request_count == before or (not self._owed and self._in_body()):
            self._given_up = True
            rest = bytes(self._ahead)
            self._ahead.clear()
            if rest:
                super().data_received(rest)

    # --- our own

    def _begin(self, head: Head, end: int) -> None:
        transport = self.transport
        assert isinstance(transport, Stream)
        del self._ahead[:end]
        self._head = self._seen = 0
        body = Pulled(transport, self._ahead, None if head.chunked else head.length or 0)
        if body.ended:
            self._watch(None)
        else:
            transport.pause_reading()
            self._watch(self._limits.idle_s)
        self._lean = Lean(head, body, self, transport)
        self._task = self._loop.create_task(self._respond(self._lean))

    async def _respond(self, request: Lean) -> None:
        """Answer it; the connection ends with any failure, because nobody could tell what was sent."""
        goes_on = False
        try:
            response = await self._answer(request)
            keep_alive = request.keep_alive if response.keep_alive is None else bool(response.keep_alive)
            keep_alive = keep_alive and not self._close
            if not response.prepared:
                request.transport.write(_bytes_of(request, response, keep_alive=keep_alive))
            goes_on = await self._in_step(request.body) and keep_alive
        except Exception as error:
            if not isinstance(error, ConnectionError) and not request.begun:
                log.exception("request failed")
            request.transport.abort()
        finally:
            self._finished(goes_on=goes_on)

    async def _in_step(self, body: Pulled) -> bool:
        """Drop what nobody took of a body; whether the next request begins where we are.

        Also before closing: a reset would destroy the answer.
        """
        if body.ended:
            return True
        dropped = memoryview(bytearray(1 << 14))
        try:
            async with asyncio.timeout(LINGER_S):
                while (count := body.receive(dropped)) != 0:
                    await (asyncio.sleep(0) if count else body.wait())
        except (TimeoutError, BadRequest):
            return False
        return True

    def _finished(self, *, goes_on: bool) -> None:
        self._lean = self._task = None
        self._watch(None)
        transport = self.transport
        if transport is None:
            return
        if not goes_on or self._close or self._force_close:
            transport.close()
            return
        self._keep_alive_from_now()
        self._held = False
        transport.resume_reading()
        self._advance()

    # --- time and the end

    def _keep_alive_from_now(self) -> None:
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(
                self._next_keepalive_close_time, self._process_keepalive
            )

    def _process_keepalive(self) -> None:
        """aiohttp believes to be idle while we answer."""
        if self._task is not None:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    def _look(self) -> None:
        """A silence within a body that is pulled. It is nobody's but ours when we do not listen."""
        if self._lean is None or self._lean.body.ended:
            super()._look()
            return
        body = self._lean.body
        silent_s = self._loop.time() - body.heard_at if body.waiting else 0.0
        if silent_s < self._limits.idle_s:
            self._timer = self._loop.call_later(self._limits.idle_s - silent_s, self._look)
        elif self.transport is not None:
            self.transport.abort()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - as aiohttp calls it
        """Let our request finish within its time, then aiohttp's own."""
        self._close = True
        if self._task is not None:
            task = self._task
            await asyncio.wait((task,), timeout=timeout)
            task.cancel()
        await super().shutdown(timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client left: who answers it ends."""
        if self._task is not None:
            self._task.cancel()
        self._ahead.clear()
        super().connection_lost(exc)


def _bytes_of(request: Lean, response: web.StreamResponse, *, keep_alive: bool) -> bytes:
    """A whole answer that a handler made for aiohttp, as aiohttp would write it."""
    body = getattr(response, "body", b"") or b""
    if not isinstance(body, bytes):
        raise TypeError("only whole answers")
    fields: dict[str, Any] = {
        **response.headers,
        "Date": formatdate(time.time(), usegmt=True),
        "Server": "edged",
    }
    if response.status not in (204, 304):
        fields["Content-Length"] = str(len(body))
        fields.setdefault("Content-Type", "application/octet-stream")
    if not keep_alive:
        fields["Connection"] = "close"
    elif request.version.minor == 0:
        fields["Connection"] = "keep-alive"
    for value in fields.values():
        if _PLAIN_VALUE.fullmatch(value) is None:
            raise ValueError("a header with a line break")
    lines = [
        f"HTTP/1.1 {response.status} {response.reason}",
        *(f"{k}: {v}" for k, v in fields.items()),
        "",
        "",
    ]
    head = "\r\n".join(lines).encode("utf-8", "replace")
    request.begun = True
    return head if request.method == "HEAD" else head + body
