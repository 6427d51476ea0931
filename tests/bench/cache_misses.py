"""Misses: CPU seconds per 100,000 and requests a second, every object cold, beside Squid and nginx.

    python -m tests.bench.cache_misses [--objects 6000]

Every request names an object nobody asked for before (4 KiB each); 16 connections, one pass.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import uvloop

from tests.bench.cache_peers import Bench, Peer, bench


async def one_pass(port: int, urls: list[str], connections: int = 16) -> float:
    """Seconds to fetch all ``urls``."""
    waiting = iter(urls)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for url in waiting:
            writer.write(f"GET {url} HTTP/1.1\r\nHost: origin\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head)
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(client())
    return time.perf_counter() - started


def measure(peer: Peer, b: Bench, count: int) -> float:
    urls = [b.origin + path for path in b.objects(count, 4096)]
    cpu = peer.cpu_s()
    seconds = uvloop.run(one_pass(peer.port, urls))
    used = (peer.cpu_s() - cpu) / count * 100_000
    print(f"  {peer.name:12} {count / seconds:8.0f}/s  {used:6.1f} CPU s/100k")
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=6000)
    options = parser.parse_args()
    with bench() as b:
        print(f"{options.objects} cold objects of 4 KiB, 16 connections")
        running = [b.start_edged(), b.start_squid(memory=False), b.start_nginx()]
        for _ in range(2):
            rates = {peer.name: measure(peer, b, options.objects) for peer in running}
        ratio = rates["edged"] / rates["squid-disk"]
        print(f"  bar: rate >= Squid's: {'met' if ratio >= 1 else 'missed'} (x{ratio:.2f})")


if __name__ == "__main__":
    main()
