"""A DNS server that can change its mind: each question for a name takes its next answer.

    python -m tests.support.nameserver ADDRESS PORT '{"www.example.org": [["198.51.100.2"]], ...}'

Answers have the TTL 0 where a name has several, else 60. Names it was not told do not exist.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import struct
import sys
from collections.abc import Iterator
from typing import cast

A, AAAA = 1, 28


class Server(asyncio.DatagramProtocol):
    """Answers A and AAAA."""

    def __init__(self, zones: dict[str, list[list[str]]]) -> None:
        self._lives = {name: 0 if len(sets) > 1 else 60 for name, sets in zones.items()}
        self._sets: dict[str, Iterator[list[str]]] = {
            name: itertools.cycle([s for s in sets for _ in range(2)]) for name, sets in zones.items()
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        number = data[:2]
        at, labels = 12, []
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        (kind,) = struct.unpack_from("!H", data, at + 1)
        question, name = data[12 : at + 5], ".".join(labels).lower()
        known = name in self._sets
        addresses = [ipaddress.ip_address(text) for text in next(self._sets[name])] if known else []
        fitting = [a for a in addresses if a.version == (4 if kind == A else 6)] if kind in (A, AAAA) else []
        head = number + struct.pack("!HHHHH", 0x8180 | (0 if known else 3), 1, len(fitting), 0, 0)
        records = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, self._lives[name], len(a.packed)) + a.packed
            for a in fitting
        )
        self.transport.sendto(head + question + records, addr)


async def serve(host: str, port: int, zones: dict[str, list[list[str]]]) -> None:
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: Server(zones), local_addr=(host, port))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
