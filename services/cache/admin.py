"""Administration over a unix socket per process: figures, and making it forget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from services.cache.service import CacheService


class Admin:
    """Who may open the socket may administer: its directory's mode decides."""

    def __init__(self, service: CacheService, path: Path) -> None:
        self._service = service
        self._path = path

    @asynccontextmanager
    async def running(self, _tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Answer while entered."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._path.unlink(missing_ok=True)
        application = web.Application()
        application.add_routes([web.get("/summary", self._summary), web.post("/forget", self._forget)])
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, str(self._path)).start()
        self._path.chmod(0o660)
        try:
            yield
        finally:
            await runner.cleanup()
            self._path.unlink(missing_ok=True)

    async def _summary(self, _request: web.Request) -> web.Response:
        body = msgspec.json.encode(self._service.figures.summary())
        return web.Response(body=body, content_type="application/json")

    async def _forget(self, request: web.Request) -> web.Response:
        """Drop what is hot: one object (by key), the documents of one repository, or everything."""
        key, name = request.query.get("object"), request.query.get("repository")
        if key:
            self._service.residents.drop(key)
        else:
            self._service.residents.clear()
            for repository in self._service.routes.repositories.values():
                if name in (None, repository.name):
                    repository.documents.forget()
        return web.Response(status=204)
