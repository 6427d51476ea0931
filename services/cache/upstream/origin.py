"""One upstream server: its connections, its circuit breaker and its figures."""

from __future__ import annotations

import asyncio
import bisect
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from edged.config.cache import UpstreamLimits
from edged.errors import Upstream, UpstreamTimeout
from edged.logs import get_logger
from edged.metrics import LATENCY_S
from services.cache.upstream.breaker import Breaker
from services.cache.upstream.exchange import Connection, Reply

log = get_logger("edged.cache.upstream")

_IDLE_S = 30.0
_MAX_IDLE = 32


@dataclass(slots=True)
class Figures:
    """What an upstream did for us, for metrics."""

    requests: int = 0
    failures: int = 0
    bytes: int = 0
    damaged: int = 0
    raced: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_S) + 1))

    def answered(self, seconds: float) -> None:
        """The head of an answer came after ``seconds``."""
        self.buckets[bisect.bisect_left(LATENCY_S, seconds)] += 1
        self.seconds += seconds


class Origin:
    """A stratum-1 or a destination's server, by base URL."""

    def __init__(self, base: str, limits: UpstreamLimits) -> None:
        parts = urlsplit(base)
        assert parts.hostname is not None
        self.base = base
        self.host = parts.hostname
        self.authority = parts.netloc
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.limits = limits
        self.breaker = Breaker(limits.failures, limits.rest_s)
        self.figures = Figures()
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._room = asyncio.Semaphore(limits.connections)

    async def get(self, path: bytes, headers: bytes = b"") -> Reply:
        """GET ``path``; ``headers`` are complete lines. Returns once the head is here. Raises Upstream."""
        request = b"GET %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (path, self.authority.encode(), headers)
        self.figures.requests += 1
        clock = asyncio.get_running_loop().time
        started = clock()
        await self._room.acquire()
        try:
            reply = await self._exchange(request)
        except BaseException:
            self._room.release()
            raise
        self.figures.answered(clock() - started)
        return reply

    def worked(self) -> None:
        """It gave a proper answer."""
        self.breaker.worked()

    def failed(self, why: str) -> None:
        """It gave none, or a broken one."""
        self.figures.failures += 1
        if self.breaker.failed(asyncio.get_running_loop().time()):
            log.warning("upstream rests", extra={"upstream": self.base, "reason": why})

    @property
    def rests(self) -> bool:
        """The circuit is open: others are asked first."""
        return not self.breaker.allows(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Drop all connections."""
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()

    async def _exchange(self, request: bytes) -> Reply:
        while (connection := self._kept()) is not None:
            try:
                return await self._on(connection, request)
            except Upstream:
                if connection.answered:
                    raise
                # an idle connection the server had closed meanwhile: nothing was answered, take another
        return await self._on(await self._connect(), request)

    async def _on(self, connection: Connection, request: bytes) -> Reply:
        self._busy.add(connection)
        try:
            return await connection.exchange(request, self._giver(connection))
        except BaseException:
            self._busy.discard(connection)
            connection.close()
            raise

    def _giver(self, connection: Connection) -> Callable[[bool], None]:
        given = False

        def give_back(reusable: bool) -> None:
            nonlocal given
            if given:
                return
            given = True
            self._busy.discard(connection)
            self._room.release()
            if reusable and len(self._idle) < _MAX_IDLE:
                connection.idle_since = asyncio.get_running_loop().time()
                self._idle.append(connection)
            else:
                connection.close()

        return give_back

    def _kept(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and now - connection.idle_since < _IDLE_S:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, connection = await loop.create_connection(Connection, self.host, self.port, ssl=self._tls)
        except TimeoutError as error:
            raise UpstreamTimeout("an upstream cannot be reached", detail=f"{self.base}: connect") from error
        except OSError as error:
            raise Upstream("an upstream cannot be reached", detail=f"{self.base}: {error}") from error
        return connection
