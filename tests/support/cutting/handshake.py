"""Cuts while SSH greets and exchanges keys: a relay of bytes that reads what is not yet encrypted.

Format of banner and packets: RFC 4253 sections 4.2 and 6. From NEWKEYS on only its direction is known.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.support.cutting.cut import Cut, Step

BLOCK = 65536
_NEWKEYS = 21


class Handshake(Step):
    """What is not passed on any more: the connection ends instead."""

    CONNECT = "TCP connection"
    SERVER_BANNER = "banner of the server"
    CLIENT_BANNER = "banner of the client"
    CLIENT_ALGORITHMS = "client's KEXINIT"
    SERVER_ALGORITHMS = "server's KEXINIT"
    CLIENT_EXCHANGE = "client's half of the key exchange"
    SERVER_EXCHANGE = "server's half of the key exchange"
    CLIENT_NEW_KEYS = "client's NEWKEYS"
    SERVER_NEW_KEYS = "server's NEWKEYS"
    CLIENT_SECRET = "first bytes that the client encrypts"
    SERVER_SECRET = "first bytes that the server encrypts"


_CLIENT = {
    20: Handshake.CLIENT_ALGORITHMS,
    30: Handshake.CLIENT_EXCHANGE,
    _NEWKEYS: Handshake.CLIENT_NEW_KEYS,
}
_SERVER = {
    20: Handshake.SERVER_ALGORITHMS,
    31: Handshake.SERVER_EXCHANGE,
    _NEWKEYS: Handshake.SERVER_NEW_KEYS,
}


class HandshakeRelay:
    """``login`` is the node's, as seen through the relay; it shows the node's own host key."""

    def __init__(self, port: int, cut: Cut) -> None:
        self._port = port
        self._cut = cut
        self.login = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[HandshakeRelay]:
        server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        async with server:
            self.login = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut.due(Handshake.CONNECT):
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        both = (writer, there_writer)
        client = _units(reader, Handshake.CLIENT_BANNER, _CLIENT, Handshake.CLIENT_SECRET)
        server = _units(there_reader, Handshake.SERVER_BANNER, _SERVER, Handshake.SERVER_SECRET)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pass(client, there_writer, both))
            tasks.create_task(self._pass(server, writer, both))

    async def _pass(
        self,
        units: AsyncIterator[tuple[Step | None, bytes]],
        to: asyncio.StreamWriter,
        both: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        with suppress(OSError, EOFError):
            async for step, content in units:
                if step is not None and self._cut.due(step):
                    break
                to.write(content)
                await to.drain()
        for writer in both:
            writer.transport.abort()


async def _units(
    reader: asyncio.StreamReader, banner: Step, packets: dict[int, Handshake], secret: Step
) -> AsyncIterator[tuple[Step | None, bytes]]:
    """One side's banner, its plain packets, then whatever it encrypts. Raises EOFError at the end."""
    yield banner, await reader.readuntil(b"\n")
    kind = 0
    while kind != _NEWKEYS:
        head = await reader.readexactly(4)
        packet = await reader.readexactly(struct.unpack("!I", head)[0])
        kind = packet[1]
        yield packets.get(kind), head + packet
    while block := await reader.read(BLOCK):
        yield secret, block
