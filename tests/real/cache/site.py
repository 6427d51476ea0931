"""A running cache in this process, and a client that sees exactly what comes over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.config import Config, parse
from edged.services import Context
from services.cache.service import CacheService, build
from tests.support.stratum import DATA, REPOSITORY, Stratum

FAST = {"connect_s": 1.0, "slow_s": 0.3, "answer_s": 4.0, "stall_s": 0.5}


@dataclass(slots=True)
class Got:
    """An answer. ``whole``: the connection kept the promise of its Content-Length."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True


CLOSED = Got(0, {}, b"", whole=False)  # closed without an answer: a proxy failure to the CVMFS client


class Client:
    """One keep-alive connection to the cache."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, target: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Got:
        """Ask as the CVMFS client asks."""
        fields = {"Host": "stratum", "Accept": "*/*", "Proxy-Connection": "Keep-Alive", **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.send(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode())
        return await self.read(head_only=method == "HEAD")

    async def send(self, data: bytes) -> None:
        """Any bytes."""
        if self._writer is None:
            host, _, port = self._address.rpartition(":")
            self._reader, self._writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """The next answer's status and headers; status 0 when the connection ended instead."""
        assert self._reader is not None
        try:
            text = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, {}
        first, *lines = text.split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        return int(first.split(" ")[1]), headers

    async def read(self, *, head_only: bool = False) -> Got:
        """The next answer."""
        status, headers = await self.head()
        if status == 0:
            return CLOSED
        if head_only or status == 304:
            return Got(status, headers, b"")
        return await self.rest(status, headers, int(headers.get("content-length", "0")))

    async def rest(self, status: int, headers: dict[str, str], length: int) -> Got:
        """The body after its head."""
        assert self._reader is not None
        try:
            return Got(status, headers, await self._reader.readexactly(length))
        except asyncio.IncompleteReadError as error:
            return Got(status, headers, error.partial, whole=False)
        except ConnectionError:
            return Got(status, headers, b"", whole=False)

    async def some(self, count: int) -> bytes:
        """Exactly ``count`` bytes of a body."""
        assert self._reader is not None
        return await self._reader.readexactly(count)

    async def ended(self) -> bool:
        """Wait for the other side to close."""
        assert self._reader is not None
        try:
            return await self._reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = self._reader = None


@dataclass(slots=True)
class Site:
    """A cache and its strata."""

    service: CacheService
    strata: Sequence[Stratum]
    address: str

    def client(self) -> Client:
        return Client(self.address)

    def url(self, path: str, stratum: int = 0) -> str:
        """The absolute form a CVMFS client uses."""
        return f"{self.strata[stratum].url}/cvmfs/{REPOSITORY}/{path}"

    async def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Got:
        """Through the proxy, on a connection of its own."""
        return await self.fetch(self.url(path), headers, method)

    async def fetch(self, target: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Got:
        """Any target, on a connection of its own."""
        client = self.client()
        try:
            async with asyncio.timeout(15):
                return await client.get(target, headers, method)
        finally:
            client.close()

    def outcomes(self) -> dict[str, int]:
        """How the requests for the repository were answered."""
        found = self.service.routes.repository(REPOSITORY).traffic.requests()
        return {outcome.value: count for outcome, count in found.items() if count}


def configuration(directory: Path, strata: Sequence[Stratum], **extra: Any) -> Config:
    """A configuration with ``strata`` for the fixture repository; ``extra`` goes over [cache]."""
    cache = {
        "listen": ["127.0.0.1:0"],
        "store": str(directory / "store"),
        "access_log": str(directory / "access.log"),
        "upstream": FAST,
        "disk_free": 0,
        "repository": [
            {"name": REPOSITORY, "stratums": [s.url for s in strata], "keys": [str(DATA / "master.pub")]}
        ],
        **extra,
    }
    runtime = {"run": str(directory / "run"), "state": str(directory), "stop_deadline_s": 2}
    return parse({"site": {"name": "TEST"}, "runtime": runtime, "cache": cache})


@asynccontextmanager
async def cache(directory: Path, strata: Sequence[Stratum], **extra: Any) -> AsyncIterator[Site]:
    """A cache that runs while entered."""
    (service,) = build(configuration(directory, strata, **extra), Context())
    assert isinstance(service, CacheService)
    async with asyncio.TaskGroup() as tasks, service.running(tasks):
        yield Site(service, strata, service.addresses[0])


def objects() -> list[str]:
    """The fixture's object paths, with the suffix of their kind."""
    return sorted(
        str(path.relative_to(DATA / "objects")) for path in (DATA / "objects").rglob("*") if path.is_file()
    )


CATALOG = "data/75/a269601b15f51f08043f5004e80a9982ae0f4cC"
