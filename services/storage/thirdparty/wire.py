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
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import httptools

from edged.errors import Upstream, UpstreamTimeout
from edged.http.stream import Stream
from edged.http.tlsstream import TlsStream

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
    """One connection. Use: ``ask``, then ``receive`` and ``wait``; then ``ask`` again or ``close``."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._transport: Stream | None = None
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
        self._pulling = False  # a body of known length is taken from the socket itself
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost: BaseException | None = None
        self.peer = ""

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(Stream, transport)
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

    def receive(self, view: memoryview) -> int | None:
        """Bytes of the answer, as ``edged.http.body.Body``. Raises Upstream when they end early."""
        if self._left is not None and self._transport is not None and not self._pulling:
            self._pulling = True
            self._transport.pause_reading()
        if self._blocks:
            return self._from_held(view)
        if self._complete:
            return 0
        if self._lost is not None:
            raise Upstream("the connection broke", detail=str(self._lost)) from self._lost
        return self._from_socket(view) if self._pulling else None

    def _from_held(self, view: memoryview) -> int:
        """What came with the head, or in chunks."""
        piece = self._blocks[0]
        count = min(len(view), len(piece))
        view[:count] = piece[:count]
        if count == len(piece):
            self._blocks.popleft()
        else:
            self._blocks[0] = piece[count:]
        self._held -= count
        if self._complete:
            self._listen()
        elif self._paused and not self._pulling and self._held <= HELD // 2 and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return count

    def _from_socket(self, view: memoryview) -> int | None:
        assert self._transport is not None
        assert self._left is not None
        try:
            count = self._transport.receive_into(view[: self._left])
        except OSError as error:
            raise Upstream("the connection broke", detail=str(error)) from error
        if count == 0:
            raise Upstream("the connection broke", detail="the partner closed the connection")
        if count is not None:
            self._left -= count
            self._complete = self._left == 0
            if self._complete:
                self._listen()
        return count

    def _listen(self) -> None:
        """All is there: what comes now is an answer, or nothing anybody asked for."""
        self._pulling = self._paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    async def wait(self) -> None:
        """Until ``receive`` has something to say. Raises UpstreamTimeout when nothing comes any more."""
        try:
            async with asyncio.timeout(self._stall_s):
                if self._pulling and self._transport is not None:
                    await self._transport.readable()
                else:
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
            conversation = Conversation(stall_s)
            if tls is None:
                stream = Stream(sock, conversation)
            else:
                stream = TlsStream(sock, conversation, tls, server_name=name)
                await stream.handshake(connect_s)
            stream.begin()
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
    return conversation
