"""An HTTP listener of edged: own accept loop with limits per source, TLS, request ids, access log.

Stands on aiohttp's low-level server, so a handler is ``async (web.BaseRequest) -> StreamResponse``;
an ``Api`` (edged.http.api) is one, the WebDAV view is another. Exceptions become problems here. A front that
names ``lean`` methods takes them without aiohttp too, where their heads are plain (edged.http.lean).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from edged import metrics
from edged.config.site import Front
from edged.errors import Busy, ConfigError, HeadTooLarge, Unauthenticated
from edged.http.connection import LINGER_S, Connection
from edged.http.head import REQUEST_LINE
from edged.http.lean import LeanConnection
from edged.http.limits import Connections, Failures, source_of
from edged.http.listen import address_of, listeners
from edged.http.problems import answer
from edged.http.request import Parsed, Request, head_bytes
from edged.http.stream import Stream
from edged.http.tlsstream import TlsStream
from edged.http.turns import Turns
from edged.logs import get_logger, request_id
from edged.tls import ServerTls

log = get_logger("edged.http")
access_log = get_logger("edged.access")

Handler = Callable[[Parsed], Awaitable[web.StreamResponse]]

REQUESTS = metrics.counter(
    "http_requests", "HTTP requests by service, method and status.", ("service", "method", "status")
)
SECONDS = metrics.histogram(
    "http_request_seconds", "Time from request head to last byte, in seconds.", ("service",)
)
OPEN = metrics.gauge("http_connections", "Open connections.", ("service",))
REFUSED = metrics.counter(
    "http_connections_refused", "Connections closed at accept: over a limit.", ("service",)
)

UNAUTHENTICATED = "edged.unauthenticated"  # a handler's own refusal of a credential: response[it] = True
ACCEPTS = 32  # at once
FIRST_REQUEST_S = 1.0  # when stopping: for connections accepted already to say what they came for
METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "MKCOL", "PROPFIND", "PROPPATCH"}
    | {"COPY", "MOVE", "LOCK", "UNLOCK"}
)


class HttpServer:
    """One front's listeners. ``addresses`` tells where it listens once running."""

    def __init__(
        self,
        name: str,
        front: Front,
        handler: Handler,
        *,
        tls: ServerTls | None,
        inherited: Sequence[socket.socket] | None = None,
        stop_deadline_s: float = 30.0,
        lean: frozenset[str] = frozenset(),
    ) -> None:
        if front.tls and tls is None:
            raise ConfigError([f"{name}.tls: on, but no certificate is configured"])
        self.name = name
        self.front = front
        self.addresses: list[str] = []
        self.connections = Connections(front.limits.connections_per_source, front.limits.connections)
        self.failures = Failures(front.limits.failed_authentications_per_minute)
        self._handler = handler
        self._lean = lean
        self._tls = tls if front.tls else None
        self._inherited = list(inherited or ())
        self._deadline_s = stop_deadline_s
        self._room = asyncio.Event()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._turns = Turns()
        self._unheard: set[RequestHandler] = set()  # connections that have not sent a request yet
        self._all_heard = asyncio.Event()
        self._head_bytes = front.limits.header_bytes
        self._opened = OPEN.labels(name)
        self._seconds = SECONDS.labels(name)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        socks = listeners(self.front.listen, self._inherited)
        self.addresses = [address_of(sock) for sock in socks]
        self._room.set()
        server = web.Server(
            cast(Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], self._answer),
            request_factory=_request,
            keepalive_timeout=self.front.limits.idle_s,
            max_line_size=REQUEST_LINE,
            max_field_size=self.front.limits.header_bytes,
            access_log=None,
            lingering_time=LINGER_S,
            auto_decompress=False,
            handler_cancellation=True,
        )
        accepting = [tasks.create_task(self._accept(sock, server, tasks)) for sock in socks]
        if self._tls is not None:
            accepting.append(tasks.create_task(self._tls.watch()))
        try:
            yield
        finally:
            for task in accepting:
                task.cancel()
            await asyncio.gather(*accepting, return_exceptions=True)
            for sock in socks:
                sock.close()
            await self._hear_out()
            server.pre_shutdown()
            await server.shutdown(self._deadline_s)

    async def _hear_out(self) -> None:
        """Whoever was accepted is answered, though we are stopping: nobody is refused by a restart."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(FIRST_REQUEST_S, self._deadline_s)):
                while self._handshakes or self._unheard:
                    if self._handshakes:
                        await asyncio.wait(tuple(self._handshakes))
                    else:
                        self._all_heard.clear()
                        await self._all_heard.wait()
        for task in tuple(self._handshakes):
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    async def _accept(self, listener: socket.socket, server: web.Server, tasks: asyncio.TaskGroup) -> None:
        """Take connections while there is room; the rest waits in the kernel's backlog."""
        while True:
            if len(self._handshakes) % ACCEPTS == ACCEPTS - 1:
                await asyncio.sleep(0)  # a flood of them: everybody else has a turn
            await self._room.wait()
            try:
                sock, peer = listener.accept()  # no await between this and its task: none is lost at a stop
            except BlockingIOError:
                await _readable(listener)
                continue
            except OSError as error:  # EMFILE, ECONNABORTED: nothing of ours broke
                log.warning("accept failed", extra={"reason": str(error)})
                await asyncio.sleep(0.05)
                continue
            sock.setblocking(False)
            source = source_of(peer[0]) if isinstance(peer, tuple) else "unix"
            if not self.connections.take(source):
                REFUSED.labels(self.name).inc()
                sock.close()
                continue
            if self.connections.total >= self.front.limits.connections:
                self._room.clear()
            task = tasks.create_task(self._serve(sock, source, server))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _serve(self, sock: socket.socket, source: str, server: web.Server) -> None:
        """Hand one connection to aiohttp, after its TLS handshake. Its failure is that connection's own."""
        self._opened.inc()
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # who does not take its answer is cut off by the kernel, whoever of us is sending (tcp(7))
            stuck_ms = int(self.front.limits.idle_s * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stuck_ms)
        protocol = self._protocol(server, source)
        try:
            (await self._stream(sock, protocol)).begin()
        except (OSError, TimeoutError, asyncio.CancelledError) as error:
            sock.close()
            protocol.release()
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _stream(self, sock: socket.socket, protocol: Connection) -> Stream:
        if self._tls is None:
            return Stream(sock, protocol)
        stream = TlsStream(sock, protocol, self._tls.context)
        await stream.handshake(self.front.limits.header_s, self._turns, protocol.source)
        return stream

    def _protocol(self, server: web.Server, source: str) -> Connection:
        limits, closed = self.front.limits, self._closed
        if self._lean:
            methods, answer = self._lean, self._answer
            connection: Connection = LeanConnection(
                server, limits, source=source, on_close=closed, methods=methods, answer=answer
            )
        else:
            connection = Connection(server, limits, source=source, on_close=closed)
        self._unheard.add(connection)
        return connection

    def _heard(self, connection: RequestHandler) -> None:
        self._unheard.discard(connection)
        if not self._unheard:
            self._all_heard.set()

    def _closed(self, connection: Connection) -> None:
        self._heard(connection)
        self.connections.give(connection.source)
        self._opened.dec()
        self._room.set()

    async def _answer(self, request: Request) -> web.StreamResponse:
        """One request: id, limits, handler, problem, access log."""
        self._heard(request.protocol)
        started = time.perf_counter()
        rid = secrets.token_hex(8)
        mark = request_id.set(rid)
        source = request.protocol.source
        response: web.StreamResponse | None = None
        try:
            if self.failures.blocked(source, time.time()):
                raise Busy("too many failed authentications from this address", retry_after_s=60)  # noqa: TRY301
            if head_bytes(request) > self._head_bytes:
                raise HeadTooLarge("the request's headers are too large")  # noqa: TRY301
            response = await self._handler(cast(Parsed, request))  # who names lean methods takes any Request
            if UNAUTHENTICATED in response:
                self.failures.failed(source, time.time())
        except Exception as error:  # the one place where any error becomes an answer
            if isinstance(error, Unauthenticated):
                self.failures.failed(source, time.time())
            if request.transport is None or request.transport.is_closing():
                raise
            if request.begun:
                log.warning("answer broken off", extra={"reason": str(error)})
                raise  # the connection ends: the client must not take what it has for all of it
            response = answer(error)
        finally:
            self._account(request, response, time.perf_counter() - started, source)
            request_id.reset(mark)
        if not response.prepared:
            if request.begun:
                raise ConnectionResetError("another answer had begun")
            response.headers["X-Request-Id"] = rid
        return response

    def _account(
        self, request: Request, response: web.StreamResponse | None, seconds: float, source: str
    ) -> None:
        status = response.status if response is not None else 499  # the client left
        method = request.method if request.method in METHODS else "other"
        REQUESTS.labels(self.name, method, str(status)).inc()
        self._seconds.observe(seconds)
        access_log.info(
            "request",
            extra={
                "service": self.name,
                "source": source,
                "method": method,
                "path": request.shown_path[:1024],
                "status": status,
                "bytes": response.body_length if response is not None and response.prepared else 0,
                "seconds": round(seconds, 6),
            },
        )


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> Parsed:
    return Parsed(message, payload, protocol, writer, task, asyncio.get_running_loop())


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
