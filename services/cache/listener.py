"""Accepting the nodes' connections: from allowed sources only, within limits, none of them for ever."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from typing import Any

from edged.config.cache import Cache
from edged.http.limits import Connections, source_of
from edged.http.listen import address_of, listeners
from edged.logs import get_logger
from services.cache.accesslog import AccessLog
from services.cache.connection import Connection
from services.cache.engine import Engine

log = get_logger("edged.cache.listener")

_BUFFER = 64 << 10
_ACCEPTS = 64  # per wake-up, so that a flood of newcomers does not starve the others
_SWEEP_S = 1.0
_FIRST_WORD_S = 1.0
_MIN_DRAIN = 1024  # bytes per second a client must take of its answer
_MAX_BLOCKS = 4096  # header blocks remembered as harmless
_MAX_BLOCK = 2048
_MAX_SOURCES = 65536
_CLIENT_S = 10.0
_UPSTREAM_S = 3600.0

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Listener:
    """All connections of this process, and what they share."""

    def __init__(
        self,
        config: Cache,
        engine: Engine,
        access: AccessLog,
        disk: Executor,
        *,
        inherited: list[socket.socket] | None,
        stop_deadline_s: float,
    ) -> None:
        self.engine = engine
        self.access = access
        self.disk = disk
        self.by_line = engine.residents.by_line
        self.plain_blocks: set[bytes] = set()
        self.max_head = config.limits.header_bytes
        self.buffer = bytearray(_BUFFER)
        self.view = memoryview(self.buffer)
        self.stopping = False
        self.refused = self.unwelcome = self.timed_out = 0
        self.addresses: list[str] = []
        self.loop: asyncio.AbstractEventLoop
        self.clock: Callable[[], float]
        self._config = config
        self._inherited = inherited
        self._stop_deadline_s = stop_deadline_s
        self._open: set[Connection] = set()
        self._limits = Connections(config.limits.connections_per_source, config.limits.connections)
        self._networks: list[Network] = [ipaddress.ip_network(text) for text in config.sources]
        self._allowed: dict[str, bool] = {}
        self._tasks: asyncio.TaskGroup
        self._empty: asyncio.Event

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._open)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Listen while entered; leaving lets answers under way finish, within the deadline."""
        self.loop = asyncio.get_running_loop()
        self.clock = self.loop.time
        self._tasks = tasks
        self._empty = asyncio.Event()
        socks = listeners(self._config.listen, self._inherited)
        self.addresses = [address_of(sock) for sock in socks]
        for sock in socks:
            sock.setblocking(False)
            self.loop.add_reader(sock.fileno(), self._accept, sock)
        sweeper = tasks.create_task(self._sweep())
        try:
            yield
        finally:
            for sock in socks:
                self.loop.remove_reader(sock.fileno())
                sock.close()
            await self._drain()
            sweeper.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run part of an answer."""
        return self._tasks.create_task(work)

    def remember_block(self, block: bytes) -> None:
        """These header lines were parsed and change nothing: the next with them need not be parsed."""
        if len(block) > _MAX_BLOCK:
            return
        if len(self.plain_blocks) >= _MAX_BLOCKS:
            self.plain_blocks.clear()
        self.plain_blocks.add(block)

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""
        if connection in self._open:
            self._open.discard(connection)
            self._limits.give(connection.source)
            if not self._open:
                self._empty.set()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: the backlog waits
                log.warning("accept failed", extra={"reason": str(error)})
                return
            host = address[0] if isinstance(address, tuple) else "127.0.0.1"
            source = source_of(host)
            if not self._welcome(host):
                self.unwelcome += 1
                sock.close()
            elif not self._limits.take(source):
                self.refused += 1
                sock.close()
            else:
                self._adopt(sock, host, source)

    def _adopt(self, sock: socket.socket, host: str, source: str) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(Connection(sock, host.encode(), source, self))

    def _welcome(self, host: str) -> bool:
        known = self._allowed.get(host)
        if known is None:
            ip = ipaddress.ip_address(host.partition("%")[0])
            mapped = getattr(ip, "ipv4_mapped", None)
            ip = mapped or ip
            known = any(ip.version == net.version and ip in net for net in self._networks)
            if len(self._allowed) >= _MAX_SOURCES:
                self._allowed.clear()
            self._allowed[host] = known
        return known

    async def _sweep(self) -> None:
        """Close what is idle, dribbles its head, or does not take its answer."""
        limits = self._config.limits
        patience = {
            "request": limits.idle_s,
            "head": limits.header_s,
            "client": _CLIENT_S,
            "upstream": _UPSTREAM_S,
        }
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = self.clock()
            for connection in list(self._open):
                state = "client" if connection.sending else connection.waiting_for
                if now - connection.since < patience[state]:
                    continue
                if state == "client" and connection.moved >= _MIN_DRAIN * _CLIENT_S:
                    connection.moved, connection.since = 0, now
                    continue
                self.timed_out += state != "request"
                connection.close()

    async def _drain(self) -> None:
        """Let answers under way finish and hear out who has just come; idle connections close at once."""
        self.stopping = True
        self._close_idle(longer_than_s=_FIRST_WORD_S)
        if self._open:
            self._empty.clear()
            with suppress(TimeoutError):  # accepted a moment ago: its request may be on the way
                async with asyncio.timeout(_FIRST_WORD_S):
                    await self._empty.wait()
        self._close_idle(longer_than_s=0.0)
        if self._open:
            self._empty.clear()
            try:
                async with asyncio.timeout(self._stop_deadline_s):
                    await self._empty.wait()
            except TimeoutError:
                log.warning("answers cut off at the end", extra={"connections": len(self._open)})
        for connection in list(self._open):
            connection.close()

    def _close_idle(self, *, longer_than_s: float) -> None:
        now = self.clock()
        for connection in list(self._open):
            if not connection.busy and not connection.closed:
                connection.on_readable()  # what was asked before we stopped is answered
            if not connection.busy and not connection.closed and now - connection.since >= longer_than_s:
                connection.close()
