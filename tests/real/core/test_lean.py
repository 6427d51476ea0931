"""Requests read by us and requests read by aiohttp, on one connection: the same answers, limits and records."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from edged import metrics
from edged.config.site import Front, HttpLimits
from edged.errors import Denied, NotFound, Unauthenticated, Unavailable
from edged.http.head import parse
from edged.http.request import Lean, Request
from edged.http.server import HttpServer

pytestmark = pytest.mark.asyncio

SOON_S = 10.0
LIMITS = HttpLimits(header_bytes=4096, header_s=0.5, idle_s=1.0, connections_per_source=8)
LEAN = frozenset({"GET", "HEAD", "PUT"})
WAYS = [pytest.param(frozenset(), id="aiohttp"), pytest.param(LEAN, id="lean")]
HOST = b"Host: e\r\n"


class Front_:
    """A handler that tells what it was asked, and by which way it came."""

    def __init__(self) -> None:
        self.ways: list[str] = []
        self.bodies: list[bytes] = []
        self.cancelled = asyncio.Event()
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def handle(self, request: Request) -> web.StreamResponse:
        self.ways.append("lean" if isinstance(request, Lean) else "aiohttp")
        path = request.raw_path.partition("?")[0]
        refusals: dict[str, Exception] = {
            "/denied": Denied("not you"),
            "/none": NotFound("nothing"),
            "/who": Unauthenticated("who are you"),
            "/away": Unavailable("away"),
            "/bug": ValueError("a bug"),
        }
        if path in refusals:
            raise refusals[path]
        self.reached.set()
        if path == "/slow":
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if path == "/leave":
            return web.Response(text="left")
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.bodies.append(await self._body(request))
        told = {"method": request.method, "path": request.raw_path, "body": len(self.bodies[-1])}
        response = web.Response(text=json.dumps(told), headers={"X-Way": "any"})
        if path == "/last":
            response.force_close()
        return response

    async def _body(self, request: Request) -> bytes:
        got, block, body = bytearray(), memoryview(bytearray(1000)), request.body
        try:
            while (count := body.receive(block)) != 0:
                if count is None:
                    await body.wait()
                else:
                    got += block[:count]
        except BaseException:  # cancelled, or aiohttp's word for it
            self.cancelled.set()
            raise
        return bytes(got)


@asynccontextmanager
async def _listening(
    ways: frozenset[str], front: Front_ | None = None, limits: HttpLimits = LIMITS, deadline_s: float = 1
) -> AsyncIterator[tuple[HttpServer, Front_]]:
    front = front or Front_()
    listen = Front(listen=("127.0.0.1:0",), tls=False, limits=limits)
    server = HttpServer("test", listen, front.handle, tls=None, stop_deadline_s=deadline_s, lean=ways)
    async with asyncio.TaskGroup() as tasks, server.running(tasks):
        yield server, front


async def _connected(server: HttpServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = server.addresses[0].rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _said(server: HttpServer, *pieces: bytes, eof: bool = False) -> bytes:
    """Everything the server says to these, until it closes. Raises TimeoutError when it does not."""
    reader, writer = await _connected(server)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # one turn: pieces may also arrive joined
        if eof:
            writer.write_eof()
        async with asyncio.timeout(SOON_S):
            return await reader.read(-1)
    finally:
        writer.close()


def _answers(said: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of all the answers in a row."""
    found = []
    while said:
        head, _, said = said.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        status = int(line.split()[1])
        length = int(headers.get("content-length", 0)) if status >= 200 else 0
        found.append((status, headers, said[:length]))
        said = said[length:]
    return found


def _put(body: bytes, path: bytes = b"/f", *fields: bytes) -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"PUT %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s" % (path, HOST, lines, len(body), body)


def _get(path: bytes = b"/f", *fields: bytes, method: bytes = b"GET") -> bytes:
    return method + b" " + path + b" HTTP/1.1\r\n" + HOST + b"".join(f + b"\r\n" for f in fields) + b"\r\n"


LAST = _get(b"/last")
CHUNKED = b"PUT /c HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
TABLE: list[tuple[str, bytes]] = [
    ("one GET", LAST),
    ("GET twice", _get() + LAST),
    ("PUT", _put(b"x" * 5000) + LAST),
    ("empty PUT", _put(b"") + LAST),
    ("PUT without a length", _get(method=b"PUT") + LAST),
    ("pipelined", _get() + _put(b"abc") + _get(b"/x?y=1") + _put(b"") + LAST),
    (
        "mixed with other methods",
        _get() + _get(method=b"OPTIONS") + _put(b"ab") + _get(method=b"MKCOL") + LAST,
    ),
    (
        "bodies of other methods",
        _put(b"123").replace(b"PUT", b"PROPFIND") + _get() + _put(b"4567").replace(b"PUT", b"LOCK") + LAST,
    ),
    ("a GET with a body", _put(b"12345").replace(b"PUT", b"GET") + LAST),
    ("chunks", CHUNKED + b"3\r\nabc\r\n1f;x=y\r\n" + b"d" * 31 + b"\r\n0\r\n\r\n" + LAST),
    ("no chunk", CHUNKED + b"0\r\n\r\n" + LAST),
    ("chunks of another method", CHUNKED.replace(b"PUT", b"PROPFIND") + b"3\r\nabc\r\n0\r\n\r\n" + LAST),
    ("1.0", b"GET /f HTTP/1.0\r\nHost: e\r\n\r\n"),
    ("1.0 kept alive", b"GET /f HTTP/1.0\r\nHost: e\r\nConnection: keep-alive\r\n\r\n" + LAST),
    ("without Host", b"GET /last HTTP/1.1\r\n\r\n"),
    ("denied", _get(b"/denied") + LAST),
    ("not there", _get(b"/none") + LAST),
    ("unauthenticated", _get(b"/who") + LAST),
    ("away", _get(b"/away") + LAST),
    ("a bug", _get(b"/bug") + LAST),
    ("refused with its body", _put(b"x" * 100, b"/denied") + LAST),
    ("answered without its body", _put(b"x" * 100, b"/leave") + LAST),
    ("absolute form", b"GET http://e/last HTTP/1.1\r\nHost: e\r\n\r\n"),
    ("closed by the client", _get(b"/f", b"Connection: close")),
    ("a long head in all", _get(b"/f", *[b"X-%d: %s" % (n, b"a" * 1000) for n in range(6)]) + LAST),
    ("bare LF", b"GET /f HTTP/1.1\nHost: e\n\n" + LAST),
    ("LF in a field", b"GET /f HTTP/1.1\r\nHost: e\nX: y\r\n\r\n" + LAST),
    ("NUL", b"GET /f HTTP/1.1\r\nHost: e\r\nX: a\x00b\r\n\r\n" + LAST),
    ("folded", b"GET /f HTTP/1.1\r\nHost: e\r\nX: a\r\n b\r\n\r\n" + LAST),
    ("two lengths", _put(b"abc", b"/f", b"Content-Length: 3") + LAST),
    ("two other lengths", _put(b"abc", b"/f", b"Content-Length: 30") + LAST),
    (
        "length and chunks",
        _put(b"0\r\n\r\n" + _get(b"/smuggled"), b"/f", b"Transfer-Encoding: chunked") + LAST,
    ),
    (
        "chunks twice",
        CHUNKED.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + b"0\r\n\r\n" + LAST,
    ),
    ("a bad length", _put(b"abc").replace(b": 3", b": +3") + LAST),
    ("space before the colon", _put(b"abc").replace(b"Length:", b"Length :") + LAST),
    ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100 + b"\r\n\r\n"),
    ("lower case", b"get /f HTTP/1.1\r\nHost: e\r\n\r\n" + LAST),
    ("version 2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("an empty line first", b"\r\n" + _get() + LAST),
]

WHOLE = {"GET twice", "PUT", "empty PUT", "pipelined", "mixed with other methods", "chunks", "no chunk"}
WHOLE |= {"bodies of other methods", "a GET with a body", "1.0 kept alive", "PUT without a length"}


async def _outcome(ways: frozenset[str], data: bytes, step: int) -> tuple[list[Any], list[bytes]]:
    async with _listening(ways) as (server, front):
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        said = await _said(server, *pieces, eof=False)
        shown = []
        for status, headers, body in _answers(said):
            text = re.sub(rb'"request":"\w*"', b"", body)
            shown.append((status, sorted(set(headers) - {"connection"}), text))
        return shown, front.bodies


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in TABLE])
async def test_both_ways_answer_alike(data: bytes) -> None:
    step = 1 << 20
    by_aiohttp = await _outcome(frozenset(), data, step)
    by_both = await _outcome(LEAN, data, step)
    assert by_both == by_aiohttp
    assert by_both[0], "and they answer"
    assert not any(b"smuggled" in body for _, _, body in by_both[0])


@pytest.mark.parametrize(
    "data",
    [pytest.param(data, id=name) for name, data in TABLE if name in WHOLE],
)
@pytest.mark.parametrize("step", [1, 7, 100])
async def test_pieces_change_nothing(data: bytes, step: int) -> None:
    assert await _outcome(LEAN, data, step) == await _outcome(LEAN, data, 1 << 20)


async def test_plain_requests_are_ours_and_others_are_not() -> None:
    async with _listening(LEAN) as (server, front):
        data = _get() + _get(method=b"OPTIONS") + _put(b"ab") + _put(b"1").replace(b"PUT", b"LOCK") + LAST
        assert len(_answers(await _said(server, data))) == 5
        assert front.ways == ["lean", "aiohttp", "lean", "aiohttp", "lean"]


@pytest.mark.parametrize("ways", WAYS)
async def test_chunks_of_any_size_in_pieces_of_any_size(ways: frozenset[str]) -> None:
    rng = random.Random(7)
    async with _listening(ways) as (server, front):
        for _ in range(30):
            body = rng.randbytes(rng.randrange(0, 30_000))
            data, at = bytearray(CHUNKED), 0
            while at < len(body):
                size = rng.choice([1, 2, 15, 16, 1000, 5000, 9000])
                part = body[at : at + size]
                data += b"%x\r\n%s\r\n" % (len(part), part)
                at += size
            data += b"0\r\n" + (b"X-Trailer: y\r\n" if rng.random() < 0.3 else b"") + b"\r\n" + LAST
            step = rng.choice([1 << 20, 4096, 333])
            said = await _said(server, *[bytes(data[i : i + step]) for i in range(0, len(data), step)])
            assert [status for status, _, _ in _answers(said)] == [200, 200]
            assert front.bodies[-2] == body


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize(
    "bad",
    [
        b"x\r\nabc\r\n0\r\n\r\n",
        b"-1\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\n0\n\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"ffffffffffffffffffff\r\nabc",
    ],
)
async def test_malformed_chunks_end_the_connection(ways: frozenset[str], bad: bytes) -> None:
    async with _listening(ways) as (server, front):
        said = await _said(server, CHUNKED + bad + _get(b"/smuggled") + LAST)
        assert [status for status, _, _ in _answers(said)] in ([400], [])
        assert b"smuggled" not in said
        assert len(front.ways) <= 1


@pytest.mark.parametrize("ways", WAYS)
async def test_a_body_is_invited_once_it_is_wanted(ways: frozenset[str]) -> None:
    async with _listening(ways) as (server, _):
        reader, writer = await _connected(server)
        head, _, body = _put(b"hello", b"/last", b"Expect: 100-continue").partition(b"hello")
        writer.write(head)
        async with asyncio.timeout(SOON_S):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hello" + body)
            assert _answers(await reader.read(-1))[0][0] == 200
        writer.close()


@pytest.mark.parametrize("ways", WAYS)
async def test_who_is_refused_need_not_send_its_body(ways: frozenset[str]) -> None:
    async with _listening(ways) as (server, _):
        head = _put(b"x" * 100, b"/denied", b"Expect: 100-continue").partition(b"x" * 100)[0]
        (answer,) = _answers(await _said(server, head))
        assert answer[0] == 403


@pytest.mark.parametrize("ways", WAYS)
async def test_a_refusal_is_heard_though_a_body_is_on_its_way(ways: frozenset[str]) -> None:
    async with _listening(ways, limits=LIMITS.model_copy(update={"idle_s": 20.0})) as (server, _):
        head = b"PUT /denied HTTP/1.1\r\nHost: e\r\nContent-Length: 1000000000\r\n\r\n"
        (answer,) = _answers(await _said(server, head, *[bytes(1 << 16)] * 20))
        assert answer[0] == 403


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("claimed", [b"Content-Length: 10000000000", b"Transfer-Encoding: chunked"])
async def test_much_claimed_and_little_sent(ways: frozenset[str], claimed: bytes) -> None:
    async with _listening(ways) as (server, front):
        said = await _said(
            server, b"PUT /f HTTP/1.1\r\nHost: e\r\n" + claimed + b"\r\n\r\n" + b"400\r\n" + b"x" * 900
        )
        assert said == b""
        async with asyncio.timeout(SOON_S):
            await front.cancelled.wait()
        assert server.connections.total <= 1
    assert server.connections.total == 0


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("reset", [True, False])
async def test_who_leaves_within_its_body_ends_it(ways: frozenset[str], reset: bool) -> None:
    async with _listening(ways, limits=LIMITS.model_copy(update={"idle_s": 60.0})) as (server, front):
        _, writer = await _connected(server)
        writer.write(b"PUT /f HTTP/1.1\r\nHost: e\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 900)
        async with asyncio.timeout(SOON_S):
            await front.reached.wait()
        if reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.close()
        async with asyncio.timeout(SOON_S):
            await front.cancelled.wait()


@pytest.mark.parametrize("ways", WAYS)
async def test_who_leaves_while_it_is_answered_ends_it(ways: frozenset[str]) -> None:
    async with _listening(ways) as (server, front):
        _, writer = await _connected(server)
        writer.write(_get(b"/slow"))
        async with asyncio.timeout(SOON_S):
            await front.reached.wait()
            writer.close()
            await front.cancelled.wait()


@pytest.mark.parametrize("ways", WAYS)
async def test_HEAD_is_answered_without_a_body(ways: frozenset[str]) -> None:
    async with _listening(ways) as (server, _):
        said = await _said(server, _get(b"/last", method=b"HEAD"))
        head, _, body = said.partition(b"\r\n\r\n")
        assert b"\r\nContent-Length: 46" in head
        assert body == b""


@pytest.mark.parametrize("ways", WAYS)
async def test_an_answer_may_take_longer_than_a_client_may_be_silent(ways: frozenset[str]) -> None:
    async with _listening(ways, limits=LIMITS.model_copy(update={"idle_s": 0.2})) as (server, front):
        reader, writer = await _connected(server)
        writer.write(_get(b"/slow"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await reader.read(1)
        front.go_on.set()
        async with asyncio.timeout(SOON_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert (await reader.read(-1)).count(b"HTTP/1.1") == 0, "and then silence ends it"
        writer.close()


@pytest.mark.parametrize("ways", WAYS)
async def test_between_requests_silence_has_its_end(ways: frozenset[str]) -> None:
    async with _listening(ways, limits=LIMITS.model_copy(update={"idle_s": 0.3})) as (server, _):
        assert len(_answers(await _said(server, _get()))) == 1


async def test_a_second_head_that_never_ends_is_cut_off() -> None:
    limits = LIMITS.model_copy(update={"idle_s": 3600.0, "header_s": 0.3})
    async with _listening(LEAN, limits=limits) as (server, _):
        assert len(_answers(await _said(server, _get() + b"GET /next HTTP/1.1\r\nHos"))) == 1


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("methods", [(b"GET",), (b"OPTIONS",), (b"GET", b"OPTIONS", b"PUT")])
async def test_who_pipelines_much_is_held_and_answered_in_order(
    ways: frozenset[str], methods: tuple[bytes, ...]
) -> None:
    async with _listening(ways) as (server, front):
        reader, writer = await _connected(server)
        writer.write(_get(b"/slow", method=methods[0]))
        count = 3000
        for number in range(count):
            writer.write(_get(b"/n%d" % number, method=methods[number % len(methods)]))
        writer.write(LAST)
        async with asyncio.timeout(SOON_S):
            await front.reached.wait()
            front.go_on.set()
            answers = _answers(await reader.read(-1))
        assert [json.loads(body)["path"] for _, _, body in answers[1:-1]] == [f"/n{n}" for n in range(count)]
        writer.close()


@pytest.mark.parametrize("ways", WAYS)
async def test_a_stop_lets_what_runs_finish_and_hears_who_was_accepted(ways: frozenset[str]) -> None:
    front = Front_()
    async with asyncio.TaskGroup() as tasks:
        listen = Front(listen=("127.0.0.1:0",), tls=False, limits=LIMITS)
        server = HttpServer("test", listen, front.handle, tls=None, stop_deadline_s=SOON_S, lean=ways)
        async with server.running(tasks):
            first = await _connected(server)
            first[1].write(_get(b"/slow"))
            await front.reached.wait()
            second = await _connected(server)
            second[1].write(_get(b"/last"))
            stopping = asyncio.get_running_loop().call_later(0.3, front.go_on.set)
        for reader, writer in (first, second):
            async with asyncio.timeout(SOON_S):
                assert (await reader.read(-1)).startswith(b"HTTP/1.1 200")
            writer.close()
        stopping.cancel()


@pytest.mark.parametrize("ways", WAYS)
async def test_a_stop_has_an_end(ways: frozenset[str]) -> None:
    async with asyncio.timeout(SOON_S):
        async with _listening(ways, deadline_s=0.2) as (server, front):
            reader, writer = await _connected(server)
            writer.write(_get(b"/slow"))
            await front.reached.wait()
        await front.cancelled.wait()
        assert await reader.read(-1) == b""
        writer.close()


@pytest.mark.parametrize("ways", WAYS)
async def test_failed_authentications_are_counted(ways: frozenset[str]) -> None:
    limits = LIMITS.model_copy(update={"failed_authentications_per_minute": 3})
    async with _listening(ways, limits=limits) as (server, _):
        answers = _answers(await _said(server, _get(b"/who") * 4 + LAST))
        assert [status for status, _, _ in answers][:4] == [401, 401, 401, 429]
        assert answers[0][1]["www-authenticate"].startswith("Bearer")
        assert answers[3][1]["retry-after"] == "60"


@pytest.mark.parametrize("ways", WAYS)
async def test_what_is_logged_and_counted(ways: frozenset[str], caplog: pytest.LogCaptureFixture) -> None:
    labels = {"service": "test", "method": "PUT", "status": "200"}
    before = metrics.REGISTRY.get_sample_value("edged_http_requests_total", labels) or 0.0
    with caplog.at_level(logging.INFO, logger="edged.access"):
        async with _listening(ways) as (server, _):
            answers = _answers(await _said(server, _put(b"abc", b"/f?secret=1") + _get(b"/none") + LAST))
    assert (metrics.REGISTRY.get_sample_value("edged_http_requests_total", labels) or 0.0) - before == 1
    records = [vars(record) for record in caplog.records if record.name == "edged.access"]
    assert [(r["method"], r["path"], r["status"]) for r in records] == [
        ("PUT", "/f", 200),
        ("GET", "/none", 404),
        ("GET", "/last", 200),
    ]
    assert {r["source"] for r in records} == {"127.0.0.1"}
    ids = [headers["x-request-id"] for _, headers, _ in answers]
    assert len(set(ids)) == 3
    assert json.loads(answers[1][2])["request"] == ids[1]
    assert {headers["server"] for _, headers, _ in answers} == {"edged"}


async def test_the_table_holds_both_kinds() -> None:
    """A table of heads that are all refused would show nothing."""
    assert parse(TABLE[0][1]) is not None
    assert parse(dict(TABLE)["bare LF"]) is None
