"""64 KiB files over https with a token, beside XrdHttp without: CPU ms a request.

Run: python tests/bench/storage_small.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.storage_peers import best, curl, give, ground, report

COUNT = int(os.environ.get("BENCH_COUNT", "2000"))
ROUNDS = 3


def main() -> None:
    with ground() as here:
        ours = here.edged()
        peer = here.xrootd()
        data = os.urandom(65536)
        source = here.directory / "source"
        source.write_bytes(data)
        for server in (ours, peer):
            for index in range(COUNT):
                file = server.root / f"f{index}"
                file.write_bytes(data)
                file.chmod(0o644)
                give(server, file)
        names = f"[0-{COUNT - 1}]"
        results: dict[str, dict[str, list[float]]] = {"GET": {}, "PUT": {}}
        for turn in range(ROUNDS + 1):
            for server in (ours, peer):
                parallel = ("-Z", "--parallel-max", "8")
                before = server.cpu_s()
                curl(server, *parallel, "-o", "/dev/null", f"{server.url}/f{names}")
                middle = server.cpu_s()
                for batch in range(COUNT // 400):
                    uploads = [
                        part for i in range(400) for part in ("-T", str(source), f"{server.url}/u{batch}-{i}")
                    ]
                    curl(server, *parallel, *uploads)
                after = server.cpu_s()
                if turn:
                    results["GET"].setdefault(server.name, []).append((middle - before) / COUNT * 1000)
                    puts = COUNT // 400 * 400
                    results["PUT"].setdefault(server.name, []).append((after - middle) / puts * 1000)
        for method, found in results.items():
            report(
                f"64 KiB https {method}",
                best(found["edged"]),
                best(found["xrdhttp"]),
                peer.name,
                1.3,
                "CPU ms/req",
            )


main()
