"""The ban feed for a front, which has an event loop; accountd has none and loads none (``feed.FeedReader``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from edged.errors import Unavailable
from edged.identity.feed import AnyMessage, Frames


@asynccontextmanager
async def subscribed(path: Path, *, timeout_s: float = 1.0) -> AsyncIterator[AsyncIterator[list[AnyMessage]]]:
    """The feed for asyncio: ``async with subscribed(p) as batches: async for messages in batches``.

    Raises Unavailable when identity is not there or sends what is no feed; ends when it closes.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(path))
    except (OSError, TimeoutError) as error:
        raise Unavailable("identity does not answer", detail=f"{path}: {error}") from error
    try:
        yield _batches(reader)
    finally:
        writer.close()


async def _batches(reader: asyncio.StreamReader) -> AsyncIterator[list[AnyMessage]]:
    frames = Frames()
    while data := await _read(reader):
        if messages := frames.feed(data):
            yield messages


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1 << 16)
    except OSError as error:
        raise Unavailable("the ban feed ended", detail=str(error)) from error
