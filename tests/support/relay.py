"""A relay that adds a bearer token, for WebDAV clients that cannot send one (litmus, cadaver, davix-tester).

Plain http on loopback in front of a site; Host and the headers that name resources are rewritten.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.storage import StorageSite, free_port

_HOP = frozenset({"host", "connection", "keep-alive", "te", "transfer-encoding", "content-length", "expect"})


class TokenRelay:
    """``url`` is the site's export as seen through the relay."""

    def __init__(self, site: StorageSite, token: str) -> None:
        self.port = free_port()
        self.base = f"http://localhost:{self.port}"
        self.url = f"{self.base}/cms"
        self._site = site
        self._token = token

    @contextmanager
    def running(self) -> Iterator[TokenRelay]:
        """Serve from a thread while entered."""
        loop = asyncio.new_event_loop()
        started = threading.Event()
        stop = asyncio.Event()

        async def serve() -> None:
            async with aiohttp.ClientSession(auto_decompress=False) as self._session:
                runner = web.ServerRunner(web.Server(self._pass_on, access_log=None, auto_decompress=False))
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", self.port).start()
                started.set()
                await stop.wait()
                await runner.cleanup()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)
            loop.close()

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = [(n, self._there(v)) for n, v in request.headers.items() if n.lower() not in _HOP]
        headers.append(("Authorization", f"Bearer {self._token}"))
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = request.content_length
        if length is not None:
            headers.append(("Content-Length", str(length)))
        url = URL(self._site.base + request.raw_path, encoded=True)
        body = request.content if request.body_exists else None
        async with self._session.request(
            request.method,
            url,
            headers=headers,
            data=body,
            ssl=self._site.context() or False,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        ) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP or name.lower() == "content-length":
                    response.headers.add(name, value)
            await response.prepare(request)
            async for block in answer.content.iter_any():
                await response.write(block)
            await response.write_eof()
            return response

    def _there(self, value: str) -> str:
        """A header value with our address replaced by the site's."""
        return value.replace(f"http://localhost:{self.port}", self._site.base)
