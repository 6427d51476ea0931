"""One request as the calls of the door see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from edged.http.api import invite, read_body
from edged.identity.words import Verdict
from services.jobs.doors.arc.formats import Format

MAX_PATH = 4096


@dataclass(slots=True)
class Exchange:
    """The request, who sent it, and what its path names. ``base``: ``https://host/arex/rest/1.0``."""

    request: web.BaseRequest
    verdict: Verdict | None
    format: Format
    version: str
    name: str = ""
    path: str = ""

    @property
    def caller(self) -> Verdict:
        """The caller's verdict; only routes that need one may ask."""
        if self.verdict is None:
            raise RuntimeError("the route is public")
        return self.verdict

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.rel_url.query

    @property
    def base(self) -> str:
        """Where this service is, in the client's own words for it."""
        origin = self.request.url.origin()  # of an absolute-form target, before Host (RFC 9112 §3.2.2)
        return f"{origin}/arex/rest/{self.version or '1.0'}"

    async def body(self, limit: int) -> bytes:
        """The whole body, after 100 Continue when the client waits for it. Raises TooLarge."""
        await self.invite()
        return await read_body(self.request, limit)

    async def invite(self) -> None:
        """Send ``100 Continue`` if it was asked for."""
        invite(self.request)
