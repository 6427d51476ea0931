"""A store of a million objects: memory, time to serve after a start, and what eviction costs the hits.

    python -m tests.bench.cache_store [--objects 1000000]

The objects are empty files with proper names, which cost a disk the same entries as full ones.
"""

from __future__ import annotations

import argparse
import http.client
import secrets
import tempfile
import time
from pathlib import Path

from services.cache.eviction import Evictor, count
from services.cache.store import BLOCK, Store
from tests.bench.cache_peers import bench


def populate(root: Path, objects: int) -> Store:
    store = Store(root)
    for number in range(256):
        (store.objects / f"{number:02x}").mkdir(exist_ok=True)
    for _ in range(objects):
        name = secrets.token_hex(20)
        (store.objects / name[:2] / name[2:]).touch()
    store.usage.add(objects * BLOCK)
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000)
    options = parser.parse_args()
    with bench() as b, tempfile.TemporaryDirectory() as scratch:
        store = populate(Path(scratch), options.objects)
        (path,) = b.objects(1, 4096)
        started = time.perf_counter()
        peer = b.start_edged(store=scratch)
        connection = http.client.HTTPConnection("127.0.0.1", peer.port)
        connection.request("GET", b.origin + path)
        answer = connection.getresponse()
        served = answer.status
        answer.read()
        first = time.perf_counter() - started
        worst = _worst_hit(connection, b.origin + path, 10.0)
        print(
            f"{options.objects} objects: first answer ({served}) {first:.2f} s after the start of the process"
        )
        print(f"  memory {peer.rss() / 2**20:.0f} MiB")
        print(f"  slowest hit while the store is counted {worst * 1000:.1f} ms")
        started = time.perf_counter()
        files, _ = count(store)
        print(f"  a full count of {files} files: {time.perf_counter() - started:.1f} s in a thread")
        started = time.perf_counter()
        gone = Evictor(store, int(options.objects * BLOCK * 0.99), 0).round()
        took = time.perf_counter() - started
        print(f"  evicting {gone.files} files: {took:.2f} s, {gone.files / took:.0f}/s")
        print(f"  bars: <= 300 MB: {peer.rss() <= 300e6}; start <= 10 s: {first <= 10}")


def _worst_hit(connection: http.client.HTTPConnection, url: str, seconds: float) -> float:
    worst, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        connection.request("GET", url)
        connection.getresponse().read()
        worst = max(worst, time.perf_counter() - started)
    return worst


if __name__ == "__main__":
    main()
