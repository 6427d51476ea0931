"""Answers that are a Multi-Status document (RFC 4918 §13)."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from services.storage import multistatus
from services.storage.multistatus import Refused


def document(body: bytes) -> web.Response:
    """207 with a whole document."""
    return web.Response(status=207, body=body, headers={"Content-Type": multistatus.CONTENT_TYPE})


def partial(refused: Iterable[Refused]) -> web.Response:
    """All was done but for these."""
    return document(multistatus.failures(refused))
