"""A piece of internet as a program: echo, http and counting servers on given addresses.

    python -m tests.support.internet COUNTS address:port...

Each accepted connection is counted in a file COUNTS/<address>_<port>, one byte each, so that a test
can prove that nobody ever came. What is sent back: an HTTP answer to GET, else every byte.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


async def serve(counts: Path, addresses: list[str]) -> None:
    servers = []
    for text in addresses:
        host, _, port = text.rpartition(":")
        file = counts / f"{host.strip('[]')}_{port}"
        file.touch()
        servers.append(await asyncio.start_server(_Counting(file), host.strip("[]"), int(port), backlog=4096))
    (counts / "ready").touch()
    await asyncio.gather(*(server.serve_forever() for server in servers))


class _Counting:
    def __init__(self, file: Path) -> None:
        self._file = file

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._file.open("ab") as counted:
            counted.write(b".")
        try:
            first = await reader.read(65536)
            if first.startswith(b"GET /big"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\nConnection: close\r\n\r\n")
                for _ in range(200):
                    writer.write(b"x" * 100_000)
                    await writer.drain()
            elif first.startswith(b"GET "):
                body = b"hello from " + str(writer.get_extra_info("peername")[0]).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
                )
                writer.write(body)
            else:
                while first:
                    writer.write(first)
                    await writer.drain()
                    first = await reader.read(65536)
        except OSError:
            return
        finally:
            writer.close()


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    asyncio.run(serve(directory, sys.argv[2:]))
