"""Whether a server speaks XRootD's protocol: for who has no client of it. Needs no login, proves no more."""

from __future__ import annotations

import asyncio
import importlib.util
import struct
import time
from urllib.parse import urlsplit

from services.storage.xrootd.probe import Outcome, Wish

# the initial handshake of the XRootD protocol (5.x): answered with a stream, a status, and 8 bytes
_HELLO = struct.pack("!5i", 0, 0, 0, 4, 2012)
_ANSWER = struct.Struct("!2sHI8x")


def has_client() -> bool:
    """Whether ``probe.ask`` can do more: XRootD's own client for Python is installed."""
    return importlib.util.find_spec("XRootD") is not None


async def greet(wish: Wish, *, deadline_s: float) -> list[Outcome]:
    """One step, ``answer``."""
    parts = urlsplit(wish.url)
    began, said = time.perf_counter(), ""
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                writer.write(_HELLO)
                if _ANSWER.unpack(await reader.readexactly(_ANSWER.size)) != (b"\0\0", 0, 8):
                    said = "it speaks another protocol"
            finally:
                writer.transport.abort()
    except TimeoutError:
        said = "no answer in time"
    except asyncio.IncompleteReadError:
        said = "it ends the connection"
    except OSError as error:
        said = str(error)
    return [Outcome("answer", ok=not said, seconds=time.perf_counter() - began, said=said)]
