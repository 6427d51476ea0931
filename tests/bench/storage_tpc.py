"""Third-party pull of 1 GiB from nginx over https, beside curl fetching the same: seconds.

Run: python tests/bench/storage_tpc.py
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.storage_peers import GIB, best, curl, ground, report

ROUNDS = 3


def main() -> None:
    with ground() as here:
        ours = here.edged(third_party={"partners": ["localhost"], "allow": ["127.0.0.0/8"]})
        source = here.nginx()
        with (source.root / "big").open("wb") as stream:
            for _ in range(GIB >> 24):
                stream.write(os.urandom(1 << 24))
        pulls: list[float] = []
        fetches: list[float] = []
        for turn in range(ROUNDS + 1):
            started = time.perf_counter()
            curl(ours, "-X", "COPY", "-H", f"Source: {source.url}/big", f"{ours.url}/pulled{turn}")
            middle = time.perf_counter()
            assert (ours.root / f"pulled{turn}").stat().st_size == GIB
            curl(source, "-o", str(here.directory / "fetched"), f"{source.url}/big")
            if turn:
                pulls.append(middle - started)
                fetches.append(time.perf_counter() - middle)
        report("pull of 1 GiB over https", best(pulls), best(fetches), "curl", 1.1, "s")


main()
