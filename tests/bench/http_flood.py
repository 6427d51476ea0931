"""Handshakes of 1,200 TLS clients of one address at once: how long another's connection and request take meanwhile.

Run: python tests/bench/http_flood.py
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edged.config.site import Front, HttpLimits, Tls
from edged.http.server import HttpServer
from edged.identity.testca import ThrowAwayCa
from edged.tls import ServerTls

COUNT = int(os.environ.get("BENCH_COUNT", "1200"))
ROUNDS = 5
FLOOD, OTHER = "127.0.0.2", "127.0.0.3"


async def serve(certificate: str, key: str) -> None:
    """The listener: prints its address, and its CPU seconds for each line on standard input."""
    from aiohttp import web

    async def hello(_request: object) -> web.StreamResponse:
        return web.Response(text="hello")

    limits = HttpLimits(connections_per_source=2 * COUNT, connections=4 * COUNT, header_s=60.0)
    front = Front(listen=("127.0.0.1:0",), tls=True, limits=limits)
    tls = ServerTls(Tls(certificate=Path(certificate), key=Path(key)))
    server = HttpServer("bench", front, hello, tls=tls)
    async with asyncio.TaskGroup() as tasks, server.running(tasks):
        print(server.addresses[0], flush=True)
        await asyncio.Event().wait()


async def request(port: int, context: ssl.SSLContext, source: str) -> float:
    """Seconds from the connection to the whole answer."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost", local_addr=(source, 0),
        ssl_handshake_timeout=120,
    )  # fmt: skip
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    await reader.read()
    writer.close()
    return time.perf_counter() - started


def flood(port: int) -> None:
    """A process of its own, and as an attacker does it: one ClientHello, sent by all at once at no cost."""
    out = ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    said = out.read()
    for _ in range(ROUNDS):
        with contextlib.ExitStack() as held:
            open_ = [
                held.enter_context(socket.create_connection(("127.0.0.1", port), 60, (FLOOD, 0)))
                for _ in range(COUNT)
            ]
            for sock in open_:
                sock.send(said)
            for sock in open_:
                sock.recv(1)


async def measure(port: int, ca: str) -> None:
    context = ssl.create_default_context(cafile=ca)
    quiet = [await request(port, context, OTHER) for _ in range(20)]
    flooding = await asyncio.create_subprocess_exec(sys.executable, __file__, "flood", str(port))
    ended = asyncio.ensure_future(flooding.wait())
    times: list[float] = []
    while not ended.done():
        times.append(await request(port, context, OTHER))
        await asyncio.sleep(0.01)
    print(
        f"{COUNT} handshakes at once, {ROUNDS} times; another's request: "
        f"{statistics.median(quiet) * 1000:.0f} ms before, "
        f"meanwhile {statistics.median(times) * 1000:.0f} ms, at most {max(times) * 1000:.0f} ms"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        ca = ThrowAwayCa(Path(place))
        files = ca.host("localhost")
        argv = [sys.executable, __file__, "serve", str(files.certificate), str(files.key)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline().rpartition(":")[2])
            try:
                asyncio.run(measure(port, str(ca.file)))
            finally:
                server.kill()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", certificate, key]:
            import uvloop

            uvloop.run(serve(certificate, key))
        case ["flood", port]:
            flood(int(port))
        case _:
            main()
