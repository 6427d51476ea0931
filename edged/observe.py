"""Health, metrics and summaries of one process: /healthz, /readyz, /metrics, /summary on a listener of their own.

Never on a public listener: the numbers say more about a site than outsiders need.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from edged import __version__, metrics
from edged.config.site import Front
from edged.errors import NotFound
from edged.http.server import HttpServer
from edged.lifecycle import Health
from edged.summary import Summarizing

Page = Callable[[], Awaitable[bytes]]
NOT_READY = metrics.gauge("parts_not_ready", "Parts of this process that /readyz complains of.")


class Observer:
    """Tells machines whether this process works. ``others`` are the pages of its worker processes."""

    name = "observe"

    def __init__(
        self,
        listen: str,
        health: Health,
        *,
        inherited: Sequence[socket.socket] | None = None,
        others: Sequence[Callable[[], Awaitable[list[bytes]]]] = (),
    ) -> None:
        self._health = health
        self._others = others
        self.server = HttpServer(
            self.name,
            Front(listen=(listen,), tls=False),
            self._answer,
            tls=None,
            inherited=inherited,
            stop_deadline_s=1.0,
        )

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with self.server.running(tasks):
            yield

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.rel_url.raw_path:
            case "/healthz":
                return web.Response(body=b'{"alive":true}\n', content_type="application/json")
            case "/readyz":
                return self._ready()
            case "/metrics":
                return web.Response(body=await self.page(), headers={"Content-Type": metrics.CONTENT_TYPE})
            case "/summary" if _is_local(request):
                return await self._summary()
            case _:
                raise NotFound("there are /healthz, /readyz and /metrics")

    def _ready(self) -> web.Response:
        problems = self._health.problems()
        body = {"ready": not problems, "not_ready": problems, "version": __version__}
        return web.Response(
            status=503 if problems else 200, body=msgspec.json.encode(body), content_type="application/json"
        )

    async def _summary(self) -> web.Response:
        """What each service tells of its work; for this machine only, even where metrics are for others."""
        told = {
            service.name: await service.summary()
            for service in self._health.services
            if isinstance(service, Summarizing)
        }
        return web.Response(body=msgspec.json.encode(told), content_type="application/json")

    async def page(self) -> bytes:
        """This process's metrics, merged with those of its workers."""
        NOT_READY.set(len(self._health.problems()))
        mine = metrics.exposition()
        pages = [page for group in self._others for page in await group()]
        return metrics.merge([mine, *pages]) if pages else mine


def _is_local(request: web.BaseRequest) -> bool:
    """Over a unix socket, or from one of this machine's loopback addresses."""
    return not request.remote or ipaddress.ip_address(request.remote.partition("%")[0]).is_loopback
