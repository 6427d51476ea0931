"""Answering with bytes of an open file, here or behind SSH: whole or one range, read off the loop."""

from __future__ import annotations

import re
from typing import NamedTuple

from aiohttp import web

from edged.accounts.api import OpenFile
from edged.errors import RangeNotSatisfiable

BLOCK = 256 * 1024
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Span(NamedTuple):
    """Bytes ``start`` to ``stop``, exclusive."""

    start: int
    stop: int


def requested(header: str | None, size: int) -> Span | None:
    """The one range asked for; None for the whole file (also for several ranges, RFC 9110 §14.2)."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        span = Span(max(0, size - int(last)), size)
    else:
        span = Span(int(first), min(size, int(last) + 1) if last else size)
        if last and int(last) < int(first):
            return None
    if span.start >= span.stop:
        raise RangeNotSatisfiable(f"the file has {size} bytes")
    return span


async def send(
    request: web.BaseRequest, opened: OpenFile, *, media: str = "application/octet-stream"
) -> web.StreamResponse:
    """Send the file or the range asked for, and close it; a file that shrinks cuts the connection."""
    size = opened.entry.size
    try:
        span = requested(request.headers.get("Range"), size)
        response = web.StreamResponse(status=206 if span else 200)
        if span is not None:
            response.headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        start, stop = span or Span(0, size)
        response.headers["Accept-Ranges"] = "bytes"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.content_type = media
        response.content_length = stop - start
        await response.prepare(request)
        if request.method != "HEAD":
            await _copy(response, opened, start, stop)
        await response.write_eof()
        return response
    finally:
        opened.close()


async def _copy(response: web.StreamResponse, opened: OpenFile, start: int, stop: int) -> None:
    while start < stop:
        block = await opened.read(min(BLOCK, stop - start), start)
        if not block:
            raise ConnectionResetError("the file became shorter while it was sent")
        await response.write(block)
        start += len(block)
