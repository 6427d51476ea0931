"""PROPFIND Depth 1 of 10,000 entries, beside Apache mod_dav: CPU ms a listing, and our memory.

Run: python tests/bench/storage_propfind.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.storage_peers import best, curl, give, ground, report

ENTRIES, LISTINGS, ROUNDS = 10_000, 5, 3


def main() -> None:
    with ground() as here:
        servers = [here.edged(), here.apache()]
        for server in servers:
            many = server.root / "many"
            many.mkdir()
            for index in range(ENTRIES):
                (many / f"file-{index:05d}").touch()
            many.chmod(0o755)
            give(server, many)
        found: list[list[float]] = [[], []]
        for turn in range(ROUNDS + 1):
            for server, values in zip(servers, found, strict=True):
                before = server.cpu_s()
                for _ in range(LISTINGS):
                    curl(server, "-X", "PROPFIND", "-H", "Depth: 1", "-o", os.devnull, f"{server.url}/many/")
                if turn:
                    values.append((server.cpu_s() - before) / LISTINGS * 1000)
        report("PROPFIND of 10,000 entries", best(found[0]), best(found[1]), "mod_dav", 0.2, "CPU ms")
        print(f"resident, all our processes: {servers[0].memory() >> 20} MiB")


main()
