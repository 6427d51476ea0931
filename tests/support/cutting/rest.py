"""Cuts within a request to slurmrestd: a relay of HTTP/1.1 before its socket."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.support.cutting.cut import Cut, Step

_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)\r\n", re.I)


class RestStep(Step):
    """Where the connection ends."""

    CONNECT = "TCP connection"
    VERSION = "API version asked, its answer lost"
    SUBMIT_ASKED = "job/submit asked"
    HEAD_HALF = "half of its header sent"
    HEAD_SENT = "its header sent, the job not"
    JOB_HALF = "half of the job sent"
    JOB_SENT = "the job sent"
    SUBMITTED = "the job made, the answer lost"
    ANSWER_HALF = "half of the answer received"
    ANSWERED = "the answer received"
    LISTING_HALF = "half of a listing received"


class RestRelay:
    """``url`` is slurmrestd's, as seen through the relay."""

    def __init__(self, socket: Path, cut: Cut) -> None:
        self._socket = socket
        self._cut = cut
        self._left: list[asyncio.StreamWriter] = []  # slurmrestd's ends that it does not know to be lost
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RestRelay]:
        server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self
        for writer in self._left:
            writer.transport.abort()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut.due(RestStep.CONNECT):
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_unix_connection(str(self._socket))
        with suppress(OSError, EOFError, _CutHere):
            while True:
                target = await self._pass(_request(reader), there_writer)
                await self._pass(_answer(there_reader, target), writer)
        writer.transport.abort()
        if self._cut.told or not self._cut.done:
            there_writer.transport.abort()
        else:
            self._left.append(there_writer)

    async def _pass(self, passing: AsyncIterator[bytes | Step], to: asyncio.StreamWriter) -> bytes:
        """All of one message; its first block. Raises _CutHere."""
        first = b""
        async for one in passing:
            if isinstance(one, bytes):
                first = first or one
                to.write(one)
                await to.drain()
            elif self._cut.due(one):
                raise _CutHere
        return first


class _CutHere(Exception):
    """The connection ends now."""


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Header and body. slurmrestd tells the length of whatever has one."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head, await reader.readexactly(int(length[1])) if length else b""


async def _request(reader: asyncio.StreamReader) -> AsyncIterator[bytes | Step]:
    head, body = await _message(reader)
    if b"/job/submit " not in head:
        yield head
        yield body
        return
    yield RestStep.SUBMIT_ASKED
    yield head[: len(head) // 2]
    yield RestStep.HEAD_HALF
    yield head[len(head) // 2 :]
    yield RestStep.HEAD_SENT
    yield body[: len(body) // 2]
    yield RestStep.JOB_HALF
    yield body[len(body) // 2 :]
    yield RestStep.JOB_SENT


async def _answer(reader: asyncio.StreamReader, request: bytes) -> AsyncIterator[bytes | Step]:
    """``request``: how it began."""
    head, body = await _message(reader)
    target = request.split()[1]
    whole = head + body
    if target.endswith(b"/openapi/v3"):
        yield RestStep.VERSION
    elif target.endswith(b"/job/submit"):
        yield RestStep.SUBMITTED
    yield whole[: len(whole) // 2]
    if target.endswith(b"/job/submit"):
        yield RestStep.ANSWER_HALF
    elif b"/jobs" in target:
        yield RestStep.LISTING_HALF
    yield whole[len(whole) // 2 :]
    if target.endswith(b"/job/submit"):
        yield RestStep.ANSWERED
