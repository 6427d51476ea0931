"""What lies under /.well-known/: the storage report, and a clean 404 for what this site does not have.

gfal2 and FTS look there for a tape API and a macaroon issuer; 404 tells them at once that there is none.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import msgspec
from aiohttp import web

from edged.config.storage import Storage
from edged.errors import NotFound
from edged.http.api import bearer
from edged.http.request import Request
from edged.identity.client import Verdicts
from services.storage.faults import MethodRefused
from services.storage.report import document
from services.storage.space import Spaces


class WellKnown:
    """Answers for /.well-known/ paths."""

    def __init__(self, config: Storage, site: str, identity: Verdicts, spaces: Spaces) -> None:
        self._config = config
        self._site = site
        self._identity = identity
        self._spaces = spaces
        self.url = ""

    async def answer(self, request: Request, path: str) -> web.StreamResponse:
        """Raises NotFound for everything but the report."""
        if not self._config.report or path != self._config.report:
            raise NotFound("not offered here")
        if request.method not in ("GET", "HEAD"):
            raise MethodRefused("the report is read-only", allow="GET, HEAD, OPTIONS")
        exports = self._config.exports
        if not self._config.report_public:
            verdict = await self._identity.verdict(bearer(request))
            exports = tuple(export for export in exports if export.vo == verdict.vo)
        body = document(
            site=self._site,
            version=version("edged"),
            url=self.url,
            exports=exports,
            spaces=self._spaces.latest,
            now=time.time(),
        )
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")
