"""TLS in front of a unix socket, as a site puts nginx or stunnel in front of slurmrestd: bytes pass as they are."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from edged.identity.testca import HostFiles

BLOCK = 65536


@asynccontextmanager
async def tls_front(socket: Path, host: HostFiles) -> AsyncIterator[int]:
    """The port on 127.0.0.1 while entered; its certificate is ``host``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(host.certificate, host.key)

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_unix_connection(str(socket))
        async with asyncio.TaskGroup() as both:
            both.create_task(_passed(reader, back_writer))
            both.create_task(_passed(back_reader, writer))

    server = await asyncio.start_server(joined, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side ends; then the other hears of it."""
    with suppress(OSError):
        while block := await reader.read(BLOCK):
            writer.write(block)
            await writer.drain()
    writer.close()
