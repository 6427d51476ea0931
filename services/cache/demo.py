"""The cache's part of ``edged demo``: a signed repository behind one corrupted and one honest stratum.

``settings`` names the two strata in the daemon's configuration, ``steps`` starts them in this process
and asks the cache as a compute node would. The data are a real repository's (demo_data).
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from services.cache import signatures

if TYPE_CHECKING:
    from edged.demo.context import Demo
    from edged.demo.settings import Scene

REPOSITORY = "software.example.org"
DATA = Path(__file__).with_name("demo_data")
CATALOG = "data/75/a269601b15f51f08043f5004e80a9982ae0f4cC"
OTHER = "data/46/ec41ea8c0140dd1be2dce8cd008f4d7d98a7bfM"
HITS = 200
_FILES = {".cvmfspublished": "manifest", ".cvmfswhitelist": "whitelist"}


def settings(scene: Scene) -> str:
    """The [cache] section of the demo: TOML."""
    corrupted, honest = _free_port(), _free_port()
    return f"""
[cache]
listen = ["127.0.0.1:0"]
store = "{scene.scratch}/cache"
disk = "100M"
memory = "16M"

[[cache.repository]]
name = "{REPOSITORY}"
stratums = ["http://127.0.0.1:{corrupted}", "http://127.0.0.1:{honest}"]
keys = ["{DATA / "master.pub"}"]
"""


async def steps(demo: Demo) -> None:
    """Fetch a verified object cold and hot, and see a corrupted stratum refused."""
    assert demo.config.cache is not None
    corrupted, honest = demo.config.cache.repositories[0].stratums
    demo.heading("cache: a CVMFS repository, verified on its way")
    async with stratum(corrupted, corrupt=True), aiohttp.ClientSession() as session:
        node = Node(session, demo.url("cache"), honest)
        async with stratum(honest, corrupt=False):
            async with demo.step("manifest, signatures checked") as step:
                _, manifest = await node.get(".cvmfspublished")
                step.result = f"revision {signatures.parse_manifest(manifest).revision} of {REPOSITORY}"
            async with demo.step("object, cold") as step:
                status, body = await node.get(CATALOG)
                assert status == 200 and _right(CATALOG, body)
                step.result = f"{len(body)} bytes with the hash of their name; the first stratum sent others"
            async with demo.step(f"the same object, hot, {HITS} times") as step:
                for _ in range(HITS):
                    _, body = await node.get(CATALOG)
                    assert _right(CATALOG, body)
                step.result = "from memory"
        async with demo.step("only the corrupted stratum is left") as step:
            status, body = await node.get(OTHER)
            assert status == 502, f"status {status}: wrong bytes were served"
            step.result = f"refused with {status}, so that the client tries elsewhere"


class Node:
    """A compute node that asks for things of the repository by way of its proxy."""

    def __init__(self, session: aiohttp.ClientSession, proxy: str, stratum_url: str) -> None:
        self._session = session
        self._proxy = proxy
        self._base = f"{stratum_url}/cvmfs/{REPOSITORY}"

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        async with self._session.get(f"{self._base}/{path}", proxy=self._proxy) as answer:
            return answer.status, await answer.read()


@asynccontextmanager
async def stratum(url: str, *, corrupt: bool) -> AsyncIterator[None]:
    """A stratum-1 at ``url`` while entered; a corrupt one flips a bit in every object."""
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode().removeprefix(f"/cvmfs/{REPOSITORY}/")
                writer.write(_answer(path, corrupt=corrupt))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", int(url.rpartition(":")[2]))
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


def _answer(path: str, *, corrupt: bool) -> bytes:
    file = DATA / _FILES.get(path, path.removeprefix("data/").replace("/", ""))
    if not file.is_file():
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    body = bytearray(file.read_bytes())
    if corrupt and path.startswith("data/"):
        body[len(body) // 2] ^= 1
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _right(path: str, body: bytes) -> bool:
    return (
        hashlib.sha1(body, usedforsecurity=False).hexdigest()
        == path.removeprefix("data/").replace("/", "")[:40]
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
