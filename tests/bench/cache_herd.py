"""1,000 waiters on one cold 10 MiB object: fetches, first byte, memory; beside Squid and no proxy.

    python -m tests.bench.cache_herd [--waiters 1000]

"direct" is the same herd on the origin itself. The clients are one asyncio process on the other core.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import threading
import time

import uvloop

from tests.bench.cache_peers import Bench, Peer, bench

SIZE = 10 << 20


async def herd(port: int, url: str, waiters: int) -> tuple[list[float], list[float]]:
    """Seconds until the first body byte, and until the last, of every waiter."""
    ready = asyncio.Event()
    connected = 0
    firsts: list[float] = []
    lasts: list[float] = []
    started = 0.0

    async def one() -> None:
        nonlocal connected
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 18)
        connected += 1
        await ready.wait()
        writer.write(f"GET {url} HTTP/1.1\r\nHost: origin\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        got = len(await reader.read(1 << 16))
        firsts.append(time.perf_counter() - started)
        while got < SIZE:
            chunk = await reader.read(1 << 18)
            if not chunk:
                raise RuntimeError("cut short")
            got += len(chunk)
        lasts.append(time.perf_counter() - started)
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(waiters):
            tasks.create_task(one())
        while connected < waiters:
            await asyncio.sleep(0.01)
        started = time.perf_counter()
        ready.set()
    return firsts, lasts


class MemoryWatch:
    """The largest memory of a peer while entered."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stop = threading.Event()
        self.idle = peer.rss()
        self.peak = self.idle

    def __enter__(self) -> MemoryWatch:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, self._peer.rss())


def measure(peer: Peer, b: Bench, waiters: int) -> None:
    (path,) = b.objects(1, SIZE)
    before = b.asked(path)
    cpu = peer.cpu_s()
    with MemoryWatch(peer) as memory:
        url = path if peer.name == "origin" else b.origin + path
        firsts, lasts = uvloop.run(herd(peer.port, url, waiters))
    fetched = b.asked(path) - before
    print(
        f"  {peer.name:8} {fetched:5} upstream fetches  first byte: first {min(firsts) * 1000:7.1f} ms, "
        f"median {statistics.median(firsts) * 1000:7.1f} ms  all done {max(lasts):5.2f} s  "
        f"memory +{(memory.peak - memory.idle) / 2**20:5.1f} MiB  CPU {peer.cpu_s() - cpu:5.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiters", type=int, default=1000)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with bench() as b:
        print(f"{options.waiters} waiters on one cold object of 10 MiB")
        for peer in (Peer("origin", b.origin_port, b.started[:1]), b.start_edged(), b.start_squid()):
            measure(peer, b, options.waiters)
    print("  bars: one fetch; first byte <= 1.2 x direct (origin); memory <= 64 MiB above idle")


if __name__ == "__main__":
    main()
