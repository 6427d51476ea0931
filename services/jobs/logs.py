"""stdout and stderr of a job while it runs and after: the last bytes, or following."""

from __future__ import annotations

import time
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from edged.accounts.api import OpenFile
from edged.errors import NotFound
from services.jobs.engine import Engine
from services.jobs.model import Job, State

BLOCK = 64 * 1024
FOLLOW_S = 1.0
_STARTED = frozenset(
    {State.RUNNING, State.SUSPENDED, State.FINISHING, State.FINISHED, State.FAILED, State.KILLED, State.LOST}
)


class LogRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last ``lines`` lines within the last ``bytes`` bytes; ``follow`` goes on until the job ends."""

    stream: Literal["stdout", "stderr"] = "stdout"
    lines: Annotated[int, Meta(ge=0, le=100_000)] = 100
    bytes: Annotated[int, Meta(ge=1, le=16 << 20)] = 1 << 20
    follow: bool = False


async def send_log(
    request: web.BaseRequest, engine: Engine, job: Job, query: LogRequest, *, until: float
) -> web.StreamResponse:
    """Send the end of a stream as plain text, following it no longer than ``until``, the token's end.

    NotFound before the job has written anything.
    """
    name = job.stdout if query.stream == "stdout" else job.stderr
    opened = await _open(engine, job, name)
    if opened is None and not query.follow:
        raise NotFound(f"no {query.stream} yet; the job is {job.state.value}")
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
    response.content_type = "text/plain"
    await response.prepare(request)
    position = 0
    try:
        if opened is not None:
            position = await _send_tail(response, opened, query)
        while query.follow:
            over = job.state.final or time.time() >= until
            if opened is None:
                opened = await _open(engine, job, name)
            if opened is not None:
                position = await _send_from(response, opened, position)
            if over:
                break
            await engine.wait(job, job.changed_at, FOLLOW_S)
    finally:
        if opened is not None:
            opened.close()
    await response.write_eof()
    return response


async def _open(engine: Engine, job: Job, name: str) -> OpenFile | None:
    if job.state not in _STARTED:
        return None
    try:
        return await engine.sessions.open(engine.registry.grant(job.id), job.id, name)
    except NotFound:
        return None


async def _send_tail(response: web.StreamResponse, opened: OpenFile, query: LogRequest) -> int:
    size = opened.entry.size
    start = max(0, size - query.bytes)
    data = await opened.read(size - start, start)
    await response.write(last_lines(data, query.lines))
    return start + len(data)


def last_lines(data: bytes, lines: int) -> bytes:
    """The last ``lines`` lines of ``data``; 0 means all."""
    if lines == 0:
        return data
    position = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        position = data.rfind(b"\n", 0, max(position, 0))
        if position < 0:
            return data
    return data[position + 1 :]


async def _send_from(response: web.StreamResponse, opened: OpenFile, position: int) -> int:
    while block := await opened.read(BLOCK, position):
        await response.write(block)
        position += len(block)
    return position
