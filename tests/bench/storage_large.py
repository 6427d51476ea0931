"""1 GiB by GET and PUT, https and http: CPU seconds a GiB beside nginx.

Run: python tests/bench/storage_large.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.storage_peers import GIB, Server, best, curl, give, ground, report

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))


def measured(servers: list[Server], one: Callable[[Server], None]) -> list[float]:
    """Median CPU seconds of each, the rounds interleaved; one round before to warm up."""
    seconds: list[list[float]] = [[] for _ in servers]
    for turn in range(ROUNDS + 1):
        for server, found in zip(servers, seconds, strict=True):
            before = server.cpu_s()
            one(server)
            if turn:
                found.append(server.cpu_s() - before)
    return [best(found) for found in seconds]


def main() -> None:
    with ground() as here:
        ours, ours_plain = here.edged(), here.edged(tls=False)
        data = here.directory / "data"
        with data.open("wb") as stream:
            for _ in range(GIB >> 24):
                stream.write(os.urandom(1 << 24))
        for tls, server in ((True, ours), (False, ours_plain)):
            peer = here.nginx(tls=tls)
            scheme = "https" if tls else "http"
            for each in (server, peer):
                (each.root / "big").unlink(missing_ok=True)
                os.link(data, each.root / "big")
                give(each, each.root / "big")
            got = measured([server, peer], lambda s: curl(s, "-o", "/dev/null", f"{s.url}/big"))
            report(f"{scheme} GET 1 GiB", got[0], got[1], peer.name, 1.0, "CPU s/GiB")
            put = measured([server, peer], lambda s: curl(s, "-T", str(data), f"{s.url}/up"))
            report(f"{scheme} PUT 1 GiB (adler32, commit)", put[0], put[1], peer.name, 1.05, "CPU s/GiB")


main()
