"""A hostile root:// server: whatever a client wants to open or look at, it is sent elsewhere.

    python -m tests.support.xrootd_liar PORT ELSEWHERE REDIRECT_PORT

Speaks as much of the protocol as a client needs to log in (XRootD protocol 5.x: 20 bytes of handshake, then requests
of 24 bytes and their data), and answers the rest with kXR_redirect.
"""

from __future__ import annotations

import asyncio
import struct
import sys

DIRLIST, PROTOCOL, LOGIN, OPEN, STAT = 3004, 3006, 3007, 3010, 3017
OK, ERROR, REDIRECT = 0, 4003, 4004
IS_SERVER = 1
NOT_FOUND = 3011
_REQUEST = struct.Struct("!2sH16sI")


def answer(stream: bytes, status: int, body: bytes = b"") -> bytes:
    return stream + struct.pack("!HI", status, len(body)) + body


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, elsewhere: str, port: int) -> None:
    """One client, to its end."""
    try:
        await reader.readexactly(20)
        writer.write(answer(b"\0\0", OK, struct.pack("!II", 0x500, IS_SERVER)))
        while True:
            stream, request, _, length = _REQUEST.unpack(await reader.readexactly(_REQUEST.size))
            await reader.readexactly(length)
            if request == PROTOCOL:
                writer.write(answer(stream, OK, struct.pack("!II", 0x500, IS_SERVER)))
            elif request == LOGIN:
                writer.write(answer(stream, OK, bytes(16)))
            elif request in (DIRLIST, OPEN, STAT):
                writer.write(answer(stream, REDIRECT, struct.pack("!i", port) + elsewhere.encode()))
            else:
                writer.write(answer(stream, ERROR, struct.pack("!I", NOT_FOUND) + b"nothing else here\0"))
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def serve(port: int, elsewhere: str, redirect_port: int) -> None:
    server = await asyncio.start_server(lambda r, w: talk(r, w, elsewhere, redirect_port), "0.0.0.0", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
