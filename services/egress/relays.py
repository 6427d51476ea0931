"""Relays: ``listen → host:port``, for software that knows no proxy."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct

from edged.config import egress as settings
from edged.egress.names import Names
from edged.egress.wishes import Target, target_of_authority
from edged.errors import EdgeError
from edged.logs import get_logger

log = get_logger("services.egress.relays")

_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_CHECK_S = 3.0


class Relay:
    """One ``[[egress.relay]]``: its upstreams, which of them answer, and whose turn it is."""

    def __init__(self, config: settings.Relay, names: Names) -> None:
        self.settings = config
        self.name = config.name
        self._names = names
        self._upstreams = tuple(target_of_authority(text) for text in config.to)
        self._down: set[Target] = set()
        self._turn = 0

    @property
    def dead(self) -> bool:
        """Whether no upstream answers."""
        return len(self._down) == len(self._upstreams)

    def targets(self) -> tuple[Target, ...]:
        """Upstreams in the order to try: healthy ones by turns, then the others, which may have recovered."""
        healthy = [target for target in self._upstreams if target not in self._down]
        self._turn += 1
        if healthy:
            first = self._turn % len(healthy)
            healthy = healthy[first:] + healthy[:first]
        return (*healthy, *(target for target in self._upstreams if target in self._down))

    def prelude(self, client: socket.socket) -> bytes:
        """The PROXY protocol header for a client, or nothing."""
        if self.settings.proxy_protocol == 0:
            return b""
        source, destination = client.getpeername()[:2], client.getsockname()[:2]
        make = proxy_v1 if self.settings.proxy_protocol == 1 else proxy_v2
        return make(source, destination)

    async def watch(self) -> None:
        """Connect to each upstream now and then; tell when one goes or returns."""
        while True:
            for target in self._upstreams:
                alive = await self._answers(target)
                if alive == (target in self._down):
                    log.warning(
                        "relay upstream changed",
                        extra={"relay": self.name, "to": str(target), "alive": alive},
                    )
                    (self._down.discard if alive else self._down.add)(target)
            await asyncio.sleep(self.settings.health_s)

    async def _answers(self, target: Target) -> bool:
        try:
            async with asyncio.timeout(_CHECK_S):
                if target.address is not None:
                    addresses = [target.address]
                else:
                    addresses = list((await self._names.resolve(target.host)).addresses)
                for address in addresses:
                    if await _connects(str(address), target.port):
                        return True
        except (TimeoutError, EdgeError):
            return False
        return False


async def _connects(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


Name = tuple[str, int]


def proxy_v1(source: Name, destination: Name) -> bytes:
    """PROXY protocol 1 (haproxy.org, proxy-protocol.txt §2.1)."""
    family = "TCP6" if ":" in source[0] else "TCP4"
    return f"PROXY {family} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode()


def proxy_v2(source: Name, destination: Name) -> bytes:
    """PROXY protocol 2 (§2.2): version 2, command PROXY, TCP over IPv4 or IPv6."""
    one, two = (ipaddress.ip_address(name[0].partition("%")[0]) for name in (source, destination))
    body = one.packed + two.packed + struct.pack("!HH", source[1], destination[1])
    family = 0x11 if one.version == 4 else 0x21
    return _V2_SIGNATURE + struct.pack("!BBH", 0x21, family, len(body)) + body
