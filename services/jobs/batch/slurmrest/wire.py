"""HTTP/1.1 to a slurmrestd, over a few kept connections. No more of HTTP than slurmrestd and proxies before it use.

A client of its own, because slurmrestd 26.05 puts a second answer behind each error on a connection that it has
said to close, which parsers rightly refuse. Here such a connection is left with whatever else is on it. It is
also what a submission costs on our side (tests/bench/batch_remote.py).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from edged.errors import Unavailable

ANSWER_BYTES = 512 << 20
HEAD_BYTES = 64 << 10
HTTPS_PORT = 443
BODILESS = (204, 304)  # RFC 9110 section 6.4.1


class NotSent(Unavailable):
    """No connection: slurmrestd has not seen the request."""


@dataclass(frozen=True, slots=True)
class Told:
    """An answer: its HTTP status and its body."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection; used for one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def usable(self) -> bool:
        """Whether the other end has not closed it, as far as is known."""
        return not (self.reader.at_eof() or self.writer.is_closing())


class Wire:
    """Requests to one server; at most ``limit`` at once. ``url``: ``unix:/path``, ``http://…`` or ``https://…``."""

    def __init__(self, url: str, ca_file: str | None, *, limit: int, deadline_s: float) -> None:
        self._unix = url.removeprefix("unix:") if url.startswith("unix:") else ""
        parts = urlsplit(url)
        self._host = parts.hostname or "localhost"
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._port = parts.port or (HTTPS_PORT if self._tls else 80)
        self._netloc = parts.netloc or "localhost"
        self._deadline_s = deadline_s
        self._turn = asyncio.Semaphore(limit)
        self._kept: list[Connection] = []

    async def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Told:
        """One request, sent at most once. Raises NotSent, or Unavailable when it was sent and not answered."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        message = "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
        async with self._turn:
            connection = await self._connection()
            try:
                async with asyncio.timeout(self._deadline_s):
                    connection.writer.write(message)
                    told, keep = await _answer(connection.reader)
            except (OSError, TimeoutError, EOFError, ValueError) as error:
                connection.writer.transport.abort()
                why = str(error) or type(error).__name__
                raise Unavailable("slurmrestd does not answer", detail=why) from error
            except BaseException:
                connection.writer.transport.abort()
                raise
            if keep:
                self._kept.append(connection)
            else:
                connection.writer.transport.abort()
            return told

    def close(self) -> None:
        """End the connections that nobody uses."""
        while self._kept:
            self._kept.pop().writer.transport.abort()

    async def _connection(self) -> Connection:
        while self._kept:
            kept = self._kept.pop()
            if kept.usable:
                return kept
            kept.writer.transport.abort()
        try:
            async with asyncio.timeout(self._deadline_s / 2):
                if self._unix:
                    return Connection(*await asyncio.open_unix_connection(self._unix, limit=HEAD_BYTES))
                made = asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=HEAD_BYTES)
                return Connection(*await made)
        except (OSError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise NotSent("slurmrestd cannot be reached", detail=why) from error


async def _answer(reader: asyncio.StreamReader) -> tuple[Told, bool]:
    """An answer, and whether the connection goes on. Raises EOFError, ValueError (no HTTP, or too long)."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise ValueError("a header that does not end") from error
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status = int(rest[:3])
    if not version.startswith("HTTP/1."):
        raise ValueError("not HTTP/1.1")
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    keep = version == "HTTP/1.1" and fields.get("connection", "").lower() != "close"
    if status in BODILESS:
        return Told(status, b""), keep
    if fields.get("transfer-encoding", "").lower() == "chunked":
        return Told(status, await _chunks(reader)), keep
    if "content-length" in fields:
        return Told(status, await reader.readexactly(_within(int(fields["content-length"])))), keep
    return Told(status, await _rest(reader)), False


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """RFC 9112 section 7.1; proxies before slurmrestd send them."""
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        _within(len(body) + size)
        body += (await reader.readexactly(size + 2))[:-2]
    while (await reader.readuntil(b"\r\n")) != b"\r\n":
        pass  # trailers
    return bytes(body)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while part := await reader.read(HEAD_BYTES):
        body += part
        _within(len(body))
    return bytes(body)


def _within(size: int) -> int:
    if not 0 <= size <= ANSWER_BYTES:
        raise ValueError("an answer beyond its limit")
    return size
