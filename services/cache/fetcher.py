"""Fetching an object from its upstreams into a fill, whatever the upstreams do.

Each upstream that refuses, breaks off, stalls or sends wrong bytes is left for the next; what was
already received is continued with a Range request where that is possible.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from edged.config.cache import UpstreamLimits
from edged.errors import EdgeError, Upstream
from edged.logs import get_logger
from services.cache.fill import Damaged, Fill
from services.cache.upstream.exchange import Reply
from services.cache.upstream.origin import Origin
from services.cache.upstream.race import Race, judge_object

log = get_logger("edged.cache.fetch")

Begun = Callable[[Reply], None]


async def fetch(
    fill: Fill, origins: Sequence[Origin], path: bytes, limits: UpstreamLimits, headers: bytes = b""
) -> None:
    """Fill ``fill`` with a verified object. Raises EdgeError when no upstream could give it."""
    clock = asyncio.get_running_loop().time
    race = Race(origins, limits)
    deadline = clock() + limits.answer_s
    while True:
        resume = fill.received if fill.streaming else 0
        if resume:
            deadline = clock() + limits.answer_s
        wanted = b"%bRange: bytes=%d-\r\n" % (headers, resume) if resume else headers
        origin, reply = await race.first(path, wanted, deadline)
        try:
            await pour(origin, reply, fill, limits, resume)
        except Damaged as error:
            origin.figures.damaged += 1
            _left(origin, fill, error)
            fill.restart()
        except Upstream as error:
            _left(origin, fill, error)
            race.errors.append(error)
            race.again(origin)
            if not fill.streaming:
                fill.restart()
        else:
            origin.worked()
            return


def _left(origin: Origin, fill: Fill, error: EdgeError) -> None:
    origin.failed(str(error))
    log.warning(
        "upstream left for the next",
        extra={
            "upstream": origin.base,
            "object": fill.name.key if fill.name else "",
            "reason": str(error),
            "bytes": fill.received,
        },
    )


async def pour(origin: Origin, reply: Reply, fill: Fill, limits: UpstreamLimits, resume: int = 0) -> None:
    """One answer's body into ``fill``. Raises Upstream (broken off, stalled, too long) or Damaged."""
    try:
        if reply.status == 206:
            if not resume or _range_start(reply) != resume:
                raise Upstream("an upstream sent another range than asked for")
        else:
            if resume:
                fill.restart()
            fill.begin(reply.length)
        await _body(origin, reply, fill, limits)
    finally:
        reply.close()
    await fill.finish()


async def _body(origin: Origin, reply: Reply, fill: Fill, limits: UpstreamLimits) -> None:
    clock = asyncio.get_running_loop().time
    enough = limits.min_rate * limits.stall_s
    moved = 0
    try:
        async with asyncio.timeout_at(clock() + limits.stall_s) as patience:
            async for chunk in reply.chunks():
                origin.figures.bytes += len(chunk)
                await fill.feed(chunk)
                moved += len(chunk)
                if moved >= enough:
                    patience.reschedule(clock() + limits.stall_s)
                    moved = 0
    except TimeoutError:
        raise Upstream("an upstream stalls", detail=f"{moved} bytes in {limits.stall_s} s") from None


def _range_start(reply: Reply) -> int:
    """The first byte of a Content-Range, or -1."""
    text = reply.fields.get("content-range", "")
    first = text.removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else -1


__all__ = ["fetch", "judge_object", "pour"]
