"""Answers of slurmrestd, and of proxies before it, byte by byte from a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edged.errors import Unavailable
from services.jobs.batch.slurmrest.wire import NotSent, Told, Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
NOT_CHANGED = b"HTTP/1.1 304 NOT MODIFIED\r\n\r\n"
ERROR = b"HTTP/1.1 404 NOT FOUND\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n[]"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nTrailer: 1\r\n\r\n"
TO_THE_END = b"HTTP/1.0 200 OK\r\n\r\nall of it"


@asynccontextmanager
async def server(path: Path, *answers: bytes) -> AsyncIterator[list[bytes]]:
    """Gives these answers to the requests it gets, in order; yields what was asked. Empty: it hangs up."""
    left, seen = list(answers), list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            seen.append(head)
            answer = left.pop(0)
            writer.write(answer)
            if not answer or b"Connection: Close" in answer or answer.startswith(b"HTTP/1.0"):
                break
        writer.close()

    async with await asyncio.start_unix_server(serve, str(path)):
        yield seen


def wire(path: Path, deadline_s: float = 5.0) -> Wire:
    return Wire(f"unix:{path}", None, limit=2, deadline_s=deadline_s)


async def test_one_connection_serves_many_requests(tmp_path: Path) -> None:
    answers = (OK, NOT_CHANGED, CHUNKED, TO_THE_END)
    async with server(tmp_path / "s", *answers) as seen:
        asked = wire(tmp_path / "s")
        told = [await asked.request("GET", "/x?a=b", {"X-SLURM-USER-NAME": "cmsprd"}) for _ in answers]
        assert told == [Told(200, b"{}"), Told(304, b""), Told(200, b"hello!"), Told(200, b"all of it")]
        assert seen[0] == b"GET /x?a=b HTTP/1.1\r\nHost: localhost\r\nX-SLURM-USER-NAME: cmsprd\r\n\r\n"
        asked.close()


async def test_a_second_answer_behind_an_error_is_nobodys(tmp_path: Path) -> None:
    """As slurmrestd 26.05 sends them."""
    async with server(tmp_path / "s", ERROR + ERROR, OK):
        asked = wire(tmp_path / "s")
        assert await asked.request("GET", "/", {}) == Told(404, b"[]")
        assert await asked.request("GET", "/", {}) == Told(200, b"{}")
        asked.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Close\r\n\r\n{}",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    async with server(tmp_path / "s", answer):
        with pytest.raises(Unavailable) as error:
            await wire(tmp_path / "s").request("POST", "/", {}, b"{}")
        assert not isinstance(error.value, NotSent), "it was sent: nobody knows what became of it"


async def test_silence_ends_at_the_deadline(tmp_path: Path) -> None:
    async with server(tmp_path / "s", b"HTTP/1.1 200 OK\r\n"):
        with pytest.raises(Unavailable):
            await wire(tmp_path / "s", 0.2).request("GET", "/", {})


async def test_nobody_there_is_certainly_not_sent(tmp_path: Path) -> None:
    with pytest.raises(NotSent):
        await wire(tmp_path / "s").request("POST", "/", {}, b"{}")
