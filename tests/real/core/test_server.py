"""The HTTP listener against clients that send too much, too slowly, or do not take their answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web

from edged.config.site import Front, HttpLimits
from edged.errors import Unavailable
from edged.http.api import read_body
from edged.http.server import Handler, HttpServer

pytestmark = pytest.mark.asyncio

SOON_S = 10.0
LIMITS = HttpLimits(header_bytes=4096, header_s=0.3, idle_s=0.6, connections_per_source=8)
HEAD = b"GET / HTTP/1.1\r\nHost: edge\r\n"


async def _hello(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


@asynccontextmanager
async def _listening(handler: Handler = _hello, limits: HttpLimits = LIMITS) -> AsyncIterator[HttpServer]:
    front = Front(listen=("127.0.0.1:0",), tls=False, limits=limits)
    server = HttpServer("test", front, handler, tls=None, stop_deadline_s=1)
    async with asyncio.TaskGroup() as tasks, server.running(tasks):
        yield server


async def _connected(server: HttpServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = server.addresses[0].rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _said(server: HttpServer, *pieces: bytes) -> bytes:
    """Everything the server says to these, until it closes. Raises TimeoutError when it does not."""
    reader, writer = await _connected(server)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(SOON_S):
            return await reader.read(-1)
    finally:
        writer.close()


def _problem(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    return int(head.split()[1]), json.loads(body)


async def test_a_head_that_never_ends_is_cut_off_in_time() -> None:
    async with _listening(limits=LIMITS.model_copy(update={"idle_s": 3600.0})) as server:
        assert await _said(server, HEAD) == b""


async def test_a_head_that_dribbles_gets_no_more_time() -> None:
    async with _listening(limits=LIMITS.model_copy(update={"idle_s": 3600.0})) as server:
        reader, writer = await _connected(server)
        writer.write(HEAD)
        async with asyncio.timeout(SOON_S):
            while not reader.at_eof():
                writer.write(b"X")
                try:
                    async with asyncio.timeout(0.05):
                        assert await reader.read() == b""
                except TimeoutError:
                    continue
        writer.close()


async def test_all_headers_together_have_a_limit() -> None:
    field = b"X-%d: " + b"a" * 1000 + b"\r\n"
    async with _listening() as server:
        status, told = _problem(await _said(server, HEAD, *[field % number for number in range(40)]))
    assert (status, told["title"]) == (431, "head-too-large")


async def test_the_limit_holds_for_a_head_that_comes_at_once() -> None:
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1000) for number in range(6))
    async with _listening() as server:
        answer = await _said(server, HEAD + b"Connection: close\r\n" + fields + b"\r\n")
    assert _problem(answer)[0] == 431


async def test_a_body_that_stops_coming_ends_the_request() -> None:
    ended = asyncio.Event()

    async def reading(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return web.Response(body=await read_body(request, 1000))
        finally:
            ended.set()

    async with _listening(reading) as server:
        assert await _said(server, b"POST / HTTP/1.1\r\nHost: e\r\nContent-Length: 9\r\n\r\nabc") == b""
        async with asyncio.timeout(SOON_S):
            await ended.wait()


async def test_a_body_that_keeps_coming_has_its_time() -> None:
    async def reading(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=await read_body(request, 1000))

    async with _listening(reading) as server:
        reader, writer = await _connected(server)
        writer.write(b"POST / HTTP/1.1\r\nHost: e\r\nConnection: close\r\nContent-Length: 9\r\n\r\n")
        for _ in range(8):  # together longer than idle_s
            writer.write(b"x")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.15):
                    await reader.read(1)
        writer.write(b"x")
        assert (await reader.read(-1)).endswith(b"xxxxxxxxx")
        writer.close()


async def test_who_does_not_take_its_answer_is_cut_off() -> None:
    ended = asyncio.Event()

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 20))
        finally:
            ended.set()

    async with _listening(endless) as server:
        _, writer = await _connected(server)
        cast(asyncio.Transport, writer.transport).pause_reading()
        writer.write(HEAD + b"\r\n")
        async with asyncio.timeout(SOON_S):
            await ended.wait()
        writer.close()


@pytest.mark.parametrize("length", [None, 1000])
async def test_an_answer_that_fails_half_way_is_broken_off_not_continued(length: int | None) -> None:
    """What follows must not pass for content: another head, least of all."""

    async def failing(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = length
        await response.prepare(request)
        await response.write(b"content")
        raise Unavailable("the file server hangs")

    async with _listening(failing) as server:
        answer = await _said(server, HEAD + b"\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"hangs" not in answer
    assert not answer.endswith(b"0\r\n\r\n"), "the client must see that this is not all"


async def test_no_version_of_what_we_are_made_of_is_told() -> None:
    async with _listening() as server:
        answer = await _said(server, HEAD + b"Connection: close\r\n\r\n")
    assert b"Server: edged\r\n" in answer
    assert b"aiohttp" not in answer
    assert b"X-Request-Id: " in answer


async def test_a_connection_without_a_request_gives_its_place_back() -> None:
    async with _listening() as server:
        several = [await _connected(server) for _ in range(LIMITS.connections_per_source)]
        async with asyncio.timeout(SOON_S):
            for reader, writer in several:
                assert await reader.read() == b""
                writer.close()
        assert b"hello" in await _said(server, HEAD + b"Connection: close\r\n\r\n")
