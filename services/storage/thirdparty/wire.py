"""An HTTP/1.1 client connection for bulk data: to exactly one checked address, one request at a time.

Own code because a copy needs what general clients hide: the address, 100-continue with a fallback, an
answer that comes before the body is sent, and body bytes without a copy.
Bench: tests/bench/storage_tpc.py.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import httptools

from edged.errors import Upstream, UpstreamTimeout

HELD = 2 << 20  # bytes waiting for our disk before we stop reading
MAX_HEAD = 64 * 1024
CONTINUE_S = 5.0  # servers that do not know Expect get the body after this (RFC 9110 §10.1.1)
AGENT = "edged-tpc/1"


@dataclass(slots=True)
class Answer:
    """The head of an answer; names in lower case."""

    status: int
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int | None:
        """Content-Length, if there is one."""
        value = self.headers.get("content-length", "")
        return int(value) if value.isascii() and value.isdigit() else None

    @property
    def described(self) -> str:
        """``404 Not Found``."""
        return f"{self.status} {self.reason}".strip()


class Conversation(asyncio.Protocol):
    """One connection. Use: ``ask``, then ``body`` or ``discard``; then ``ask`` again or ``close``."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: Answer | None = None
        self._headed = False
        self._continued = False
        self._complete = True
        self._left: int | None = None  # bytes of a body with Content-Length still to come
        self._until_close = False
        self._head_bytes = 0
        self._bodiless = False
        self._blocks: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost: BaseException | None = None
        self.peer = ""

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's TLS transport is none by class
        host, port = transport.get_extra_info("peername")[:2]
        self.peer = f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"

    def data_received(self, data: bytes) -> None:
        if self._left is not None and self._headed:
            self._take(data)
        else:
            self._parse(data)
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._until_close and self._headed:
            self._complete = True
        self._lost = error or ConnectionResetError("the partner closed the connection")
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- httptools

    def on_status(self, reason: bytes) -> None:
        if self._answer is not None:
            self._answer.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD:
            raise Upstream("the partner's answer has too long a head")
        assert self._answer is not None
        self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_message_begin(self) -> None:
        self._answer = Answer(0)

    def on_headers_complete(self) -> None:
        assert self._answer is not None
        assert self._parser is not None
        self._answer.status = self._parser.get_status_code()
        if 100 <= self._answer.status < 200:
            self._continued = self._continued or self._answer.status == 100
            return
        self._headed = True
        chunked = "chunked" in self._answer.headers.get("transfer-encoding", "").lower()
        if not chunked:
            self._left = self._answer.length
            self._until_close = self._left is None

    def on_body(self, data: bytes) -> None:
        if self._left is not None:
            self._take(data)
            return
        self._blocks.append(data)
        self._held += len(data)
        self._throttle()

    def on_message_complete(self) -> None:
        if self._headed:
            self._complete = True
        else:
            self._parser = httptools.HttpResponseParser(self)  # after 100 Continue comes the answer

    # --- one request

    async def ask(self, method: str, target: str, headers: Mapping[str, str], *, answer_s: float) -> Answer:
        """Send a request without body; the head of its answer. Raises Upstream, UpstreamTimeout."""
        self._begin(method, target, headers)
        return await self._head(answer_s)

    async def put(
        self,
        target: str,
        headers: Mapping[str, str],
        send: Callable[[Conversation], Awaitable[None]],
        *,
        answer_s: float,
    ) -> Answer:
        """PUT with Expect: 100-continue; ``send`` writes the body. An early refusal is returned at once."""
        self._begin("PUT", target, {**headers, "Expect": "100-continue"})
        try:
            async with asyncio.timeout(CONTINUE_S):
                await self._until(lambda: self._continued or self._headed)
        except TimeoutError:
            pass
        if not self._headed:
            await send(self)
        return await self._head(answer_s)

    async def write(self, data: bytes | bytearray) -> bool:
        """Some body bytes; False when the partner has already answered and wants no more."""
        if self._headed or self._lost is not None or self._transport is None:
            return False
        self._transport.write(data)
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._writable.wait()
            except TimeoutError:
                raise UpstreamTimeout("the partner takes no more bytes") from None
        return True

    async def body(self) -> AsyncIterator[bytes]:
        """The bytes of the answer. Raises Upstream when they end early, UpstreamTimeout when they stop."""
        while True:
            while self._blocks:
                data = self._blocks.popleft()
                self._held -= len(data)
                if self._paused and self._held <= HELD // 2 and self._transport is not None:
                    self._paused = False
                    self._transport.resume_reading()
                yield data
            if self._complete:
                return
            if self._lost is not None:
                raise Upstream("the connection broke", detail=str(self._lost)) from self._lost
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._wait()
            except TimeoutError:
                raise UpstreamTimeout(f"no byte for {self._stall_s:.0f} s") from None

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on this connection."""
        keep = self._answer is None or self._answer.headers.get("connection", "").lower() != "close"
        return self._lost is None and self._complete and keep and not self._blocks

    def close(self) -> None:
        """May be called twice."""
        if self._transport is not None:
            self._transport.abort() if not self._complete else self._transport.close()
            self._transport = None

    # --- inside

    def _begin(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        if self._transport is None or self._lost is not None:
            raise Upstream("the connection broke")
        self._parser = httptools.HttpResponseParser(self)
        self._answer, self._headed, self._continued, self._complete = None, False, False, False
        self._left, self._until_close, self._head_bytes = None, False, 0
        self._bodiless = method == "HEAD"
        lines = [f"{method} {target} HTTP/1.1"] + [f"{name}: {value}" for name, value in headers.items()]
        self._transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace"))

    async def _head(self, answer_s: float) -> Answer:
        try:
            async with asyncio.timeout(answer_s):
                await self._until(lambda: self._headed)
        except TimeoutError:
            raise UpstreamTimeout("the partner did not answer in time") from None
        assert self._answer is not None
        if self._bodiless or self._answer.status in (204, 304) or self._left == 0:
            self._complete, self._left, self._until_close = True, None, False
        return self._answer

    def _parse(self, data: bytes) -> None:
        if self._parser is None or (self._complete and self._headed):
            self._fail(Upstream("the partner sent bytes nobody asked for"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__ if isinstance(error.__context__, Upstream) else None
            self._fail(cause or Upstream("the partner's answer is not HTTP", detail=str(error)))

    def _take(self, data: bytes) -> None:
        assert self._left is not None
        if self._bodiless:
            return
        if len(data) > self._left:
            self._fail(Upstream("the partner sent more than it announced"))
            data = data[: self._left]
        self._left -= len(data)
        self._held += len(data)
        self._blocks.append(data)
        if self._left == 0:
            self._complete = True
        self._throttle()

    def _throttle(self) -> None:
        if not self._paused and self._held > HELD and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _fail(self, error: BaseException) -> None:
        self._lost = error
        if self._transport is not None:
            self._transport.abort()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self._lost is not None:
                raise Upstream("the connection broke", detail=str(self._lost)) from self._lost
            await self._wait()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def connect(
    address: tuple[str, int], name: str, tls: ssl.SSLContext | None, *, connect_s: float, stall_s: float
) -> Conversation:
    """A connection to exactly this address; the certificate is checked for ``name``. Raises Upstream."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        async with asyncio.timeout(connect_s):
            await loop.sock_connect(sock, address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, protocol = await loop.create_connection(
                lambda: Conversation(stall_s),
                sock=sock,
                ssl=tls,
                server_hostname=name if tls is not None else None,
            )
    except TimeoutError:
        sock.close()
        raise UpstreamTimeout(f"connecting to {name} took too long") from None
    except ssl.SSLCertVerificationError as error:
        sock.close()
        raise Upstream(
            f"the certificate of {name} is not valid: {error.verify_message}", retry=False
        ) from error
    except (OSError, ssl.SSLError) as error:
        sock.close()
        raise Upstream(f"cannot connect to {name}: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise
    return protocol
