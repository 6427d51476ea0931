"""A stratum-1, or any small web server, in this process: serves files and misbehaves to order.

It speaks HTTP by hand, because most of what it has to do no proper server would.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = "software.example.org"
DATA = Path(__file__).parents[1] / "real/cache/data" / REPOSITORY


@dataclass(slots=True)
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]


@dataclass(slots=True)
class Say:
    """One answer. ``length`` is what Content-Length claims (None: the truth, -1: no such header).

    ``stall_after``: bytes of the body sent before it waits for ``go_on`` (for ever when nobody sets it).
    ``rate``: bytes per second, in ten steps a second. ``close``: end the connection afterwards.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    stall_after: int | None = None
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    rate: int | None = None
    chunked: bool = False
    close: bool = False
    mute: bool = False


Fault = Callable[[Say], Say]
Handler = Callable[[Asked], Say]


class Stratum:
    """A web server whose answers are ``answer(asked)``, changed by ``faults`` for the paths they match."""

    def __init__(self, answer: Handler | None = None, *, revision: str = "rev2") -> None:
        self.revision = revision
        self.asked: Counter[str] = Counter()
        self.requests: list[Asked] = []
        self.faults: dict[str, Fault] = {}
        self.objects: dict[str, bytes] = {}
        self.connections = 0
        self.port = 0
        self._answer = answer or self._file
        self._arrived = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stratum]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self._writers: set[asyncio.StreamWriter] = set()
        try:
            yield self
        finally:
            server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await server.wait_closed()

    async def until_asked(self, times: int, path: str | None = None) -> None:
        """Wait until ``path`` (or anything) was asked for ``times`` times."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: (self.asked[path] if path else self.asked.total()) >= times)

    def fault(self, path: str, fault: Fault | None) -> None:
        """From now on ``path`` (a suffix of the request's) is answered with this fault."""
        if fault is None:
            self.faults.pop(path, None)
        else:
            self.faults[path] = fault

    # serving

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        path = first.split(" ")[1]
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        asked = Asked(path, headers)
        async with self._arrived:
            self.asked[path] += 1
            self.requests.append(asked)
            self._arrived.notify_all()
        say = self._answer(asked)
        for suffix, fault in self.faults.items():
            if path.endswith(suffix):
                say = fault(say)
        return await self._send(asked, say, writer)

    async def _send(self, asked: Asked, say: Say, writer: asyncio.StreamWriter) -> bool:
        if say.mute:
            await say.go_on.wait()
            return False
        body, status, extra = _part(asked, say)
        lines = [f"HTTP/1.1 {status} Said"]
        length = len(body) if say.length is None else say.length
        if say.chunked:
            lines.append("Transfer-Encoding: chunked")
            body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n" if body else b"0\r\n\r\n"
        elif length >= 0:
            lines.append(f"Content-Length: {length}")
        lines += [f"{name}: {value}" for name, value in {**say.headers, **extra}.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        await self._body(body, say, writer)
        return not say.close and length == len(body) | (length if say.chunked else 0)

    async def _body(self, body: bytes, say: Say, writer: asyncio.StreamWriter) -> None:
        if say.stall_after is not None:
            writer.write(body[: say.stall_after])
            await writer.drain()
            await say.go_on.wait()
            body = body[say.stall_after :]
        if say.rate is not None:
            step = max(1, say.rate // 10)
            for start in range(0, len(body), step):
                writer.write(body[start : start + step])
                await writer.drain()
                await asyncio.sleep(0.1)
            return
        writer.write(body)
        await writer.drain()

    def _file(self, asked: Asked) -> Say:
        """A file of the repository, as Apache on a stratum-1 sends it."""
        prefix = f"/cvmfs/{REPOSITORY}/"
        relative = asked.path.removeprefix(prefix)
        if relative in self.objects:
            return Say(self.objects[relative], headers={"Cache-Control": "max-age=259200"})
        path = (
            DATA
            / ("objects" if relative.startswith("data/") else self.revision)
            / relative.removeprefix("data/")
        )
        if not asked.path.startswith(prefix) or not path.is_file():
            return Say(b"no", 404)
        age = 259200 if relative.startswith("data/") else 61
        return Say(path.read_bytes(), headers={"Cache-Control": f"max-age={age}"})


def _part(asked: Asked, say: Say) -> tuple[bytes, int, dict[str, str]]:
    """Apache honours a Range for files, so do we."""
    text = asked.headers.get("range", "")
    if say.status != 200 or not text.startswith("bytes=") or not text.endswith("-"):
        return say.body, say.status, {}
    first = int(text[6:-1])
    total = len(say.body)
    return say.body[first:], 206, {"Content-Range": f"bytes {first}-{total - 1}/{total}"}


# faults


def flipped(say: Say) -> Say:
    """One bit wrong in the middle, same length."""
    middle = len(say.body) // 2
    say.body = say.body[:middle] + bytes([say.body[middle] ^ 1]) + say.body[middle + 1 :]
    return say


def truncated(say: Say) -> Say:
    """Half of what Content-Length promises, then closed."""
    say.length, say.close = len(say.body), True
    say.body = say.body[: len(say.body) // 2]
    return say


def longer(say: Say) -> Say:
    """More bytes than promised."""
    say.length, say.close = len(say.body), True
    say.body += b"and more"
    return say


def shorter_promise(say: Say) -> Say:
    """Content-Length too small: the client sees a proper, wrong object."""
    say.length, say.close = len(say.body) - 3, True
    return say


def stalled(say: Say) -> Say:
    """Half, then silence."""
    say.stall_after = len(say.body) // 2
    return say


def dripping(say: Say) -> Say:
    """100 bytes a second."""
    say.rate = 100
    return say


def mute(say: Say) -> Say:
    """No answer at all."""
    say.mute = True
    return say


def status(code: int) -> Fault:
    """This status instead."""

    def fault(say: Say) -> Say:
        return Say(b"fault", code, {"Location": "http://127.0.0.1:1/elsewhere"} if 300 <= code < 400 else {})

    return fault


def unused_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
