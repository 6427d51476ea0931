"""A container's log: the end of it, since when, with times, followed. What the node wrote, unchanged.

Beside each log the runner keeps ``<log>.times``: at which moment the log had which size, noted once a
second. From it come Since* and Timestamps, to a second, at no cost for the container.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web

from edged.accounts.api import OpenFile
from edged.errors import BadRequest, NotFound
from services.jobs.doors.interlink.names import check_label
from services.jobs.doors.interlink.pods import LogOptions, LogRequest
from services.jobs.engine import Engine
from services.jobs.logs import last_lines
from services.jobs.model import Job

BLOCK = 64 * 1024
TAIL_BYTES = 16 << 20
TIMES_BYTES = 4 << 20
FOLLOW_S = 1.0
LATEST_MS = 1 << 43  # the year 2248: a job writes what it likes
NOT_SET = "0001-01-01T00:00:00Z"


class Times:
    """When which byte of a log was first seen."""

    def __init__(self, content: bytes = b"") -> None:
        self._sizes: list[int] = []
        self._at: list[float] = []
        for line in content.splitlines():
            at, _, size = line.partition(b" ")
            if at.isdigit() and size.isdigit() and len(line) < 64 and int(at) < LATEST_MS:
                self._at.append(int(at) / 1000)
                self._sizes.append(int(size))

    def of(self, position: int) -> float | None:
        """When the byte at ``position`` was written, at the latest."""
        index = bisect.bisect_right(self._sizes, position)
        return self._at[index] if index < len(self._at) else None

    def since(self, at: float) -> int | None:
        """The first byte written at ``at`` or later; None: there is none yet."""
        index = bisect.bisect_left(self._at, at)
        if index >= len(self._at):
            return None
        return self._sizes[index - 1] if index else 0


def since_of(options: LogOptions, now: float) -> float | None:
    """The moment asked for, in Unix seconds. Raises BadRequest."""
    if options.since_seconds > 0:
        return now - options.since_seconds
    text = options.since_time
    if not text or text.startswith("0001-01-01"):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"SinceTime: not a time: {text[:64]!r}") from None
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()


def stamped(line: bytes, at: float | None) -> bytes:
    """A line with its time before it, as kubectl shows them."""
    when = datetime.fromtimestamp(at if at is not None else time.time(), UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode() + line


class LogReader:
    """Sends one container's log to one request."""

    def __init__(
        self, engine: Engine, job: Job, asked: LogRequest, over: Callable[[], bool], *, until: float
    ) -> None:
        """``over``: whether the container has ended for good, as far as is known.

        A log is followed no longer than ``until``, the end of the caller's token (Unix seconds).
        """
        self._engine = engine
        self._job = job
        self._options = asked.options
        self._over = over
        self._until = until
        previous = ".previous" if asked.options.previous else ""
        self._name = f"logs/{check_label(asked.container, 'container')}{previous}"
        self._left = asked.options.bytes or asked.options.limit_bytes or None
        self._rest = b""
        self._position = 0
        self._file: OpenFile | None = None

    async def send(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer. NotFound, with the job's state, when there is no log."""
        options = self._options
        if min(options.tail, options.bytes, options.limit_bytes, options.since_seconds) < 0:
            raise BadRequest("Tail, Bytes and SinceSeconds cannot be negative")
        since = since_of(options, time.time())
        try:
            self._file = await self._open(self._name)
            if self._file is None and not (
                options.follow and not options.previous and not self._job.state.final
            ):
                raise NotFound(f"no log of this container; its job is {self._job.state.value}")
            return await self._answer(request, since)
        finally:
            if self._file is not None:
                self._file.close()

    async def _answer(self, request: web.BaseRequest, since: float | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "no-store"})
        response.content_type = "text/plain"
        response.force_close()
        await response.prepare(request)
        if self._file is not None:
            await self._first(response, self._file, since)
        if self._options.follow and not self._options.previous:
            await self._follow(response)
        await response.write_eof()
        return response

    async def _open(self, name: str) -> OpenFile | None:
        try:
            return await self._engine.sessions.open(
                self._engine.registry.grant(self._job.id), self._job.id, name
            )
        except NotFound:
            return None

    async def _times(self) -> Times:
        opened = await self._open(f"{self._name}.times")
        if opened is None:
            return Times()
        try:
            return Times(await opened.read(TIMES_BYTES, 0))
        finally:
            opened.close()

    async def _first(self, response: web.StreamResponse, opened: OpenFile, since: float | None) -> None:
        """What is there already: from ``since`` on, of that the last ``Tail`` lines."""
        start, size = 0, opened.entry.size
        if since is not None:
            found = (await self._times()).since(since)
            start = size if found is None else min(found, size)
        if self._options.tail:
            window = max(start, size - TAIL_BYTES)
            data = await _read(opened, window, size - window)
            start = window + len(data) - len(last_lines(data, self._options.tail))
        self._position = start
        await self._copy(response, opened, last=not self._options.follow)

    async def _copy(self, response: web.StreamResponse, opened: OpenFile, *, last: bool) -> None:
        """Everything from where we are to the end of the file."""
        times = await self._times() if self._options.timestamps else None
        while self._left != 0:
            block = await opened.read(BLOCK, self._position)
            if not block:
                break
            if times is None:
                await self._write(response, block)
            else:
                await self._write_lines(response, block, times)
            self._position += len(block)
        if last and self._rest and times is not None:
            rest, self._rest = self._rest, b""
            await self._write(response, stamped(rest, times.of(self._position - 1)))

    async def _write_lines(self, response: web.StreamResponse, block: bytes, times: Times) -> None:
        position = self._position - len(self._rest)
        out: list[bytes] = []
        *lines, rest = (self._rest + block).split(b"\n")
        if len(rest) > BLOCK:  # a line without end is cut
            lines, rest = [*lines, rest], b""
        for line in lines:
            out.append(stamped(line + b"\n", times.of(position)))
            position += len(line) + 1
        self._rest = rest
        await self._write(response, b"".join(out))

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        if data:
            await response.write(data)

    async def _follow(self, response: web.StreamResponse) -> None:
        """Go on until the container has ended and everything it wrote was sent, or the token has ended."""
        while self._left != 0:
            last = self._job.state.final or self._over() or time.time() >= self._until
            if self._file is None:
                self._file = await self._open(self._name)
            if self._file is not None:
                await self._copy(response, self._file, last=last)
            if last:
                break
            await self._engine.wait(self._job, self._job.changed_at, FOLLOW_S)


async def _read(opened: OpenFile, start: int, size: int) -> bytes:
    """``size`` bytes, or what is there."""
    parts: list[bytes] = []
    while size > 0 and (block := await opened.read(min(size, 1 << 20), start)):
        parts.append(block)
        start, size = start + len(block), size - len(block)
    return b"".join(parts)
