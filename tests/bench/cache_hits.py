"""Hits: CPU seconds per 100,000, requests a second and p99, beside Squid, Varnish and nginx in one run.

    python -m tests.bench.cache_hits [--seconds 2] [--rounds 2] [--disk]

Each server is pinned to core 0, wrk to core 1; access log, source policy and LRU are on everywhere.
``--disk``: our memory tier is off and Squid's as small as it goes, so that hits come from files.
Shared machines lie about rates: compare CPU per hit, and the ratio within a run.
"""

from __future__ import annotations

import argparse

from tests.bench.cache_peers import Bench, Load, Peer, bench, fetch_all, wrk

SIZES = ((4 << 10, 200), (64 << 10, 200), (1 << 20, 64))
BARS = {4 << 10: 1.2, 64 << 10: 3.0, 1 << 20: 20.0}


def peers(b: Bench, disk: bool) -> list[Peer]:
    """Who is measured."""
    if disk:
        return [b.start_edged(memory=0, memory_object=0), b.start_nginx(), b.start_squid(memory=False)]
    return [b.start_edged(), b.start_nginx(), b.start_varnish(), b.start_squid()]


def best(loads: list[Load]) -> Load:
    """The median round by CPU."""
    return sorted(loads, key=lambda load: load.cpu_per_100k)[(len(loads) - 1) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--disk", action="store_true")
    parser.add_argument("--only", default="", help="comma list of peers")
    options = parser.parse_args()
    with bench() as b:
        running = peers(b, options.disk)
        wanted = options.only.split(",") if options.only else [peer.name for peer in running]
        for size, count in SIZES:
            paths = b.objects(count, size)
            shown: dict[str, Load] = {}
            for peer in running:
                if peer.name in wanted:
                    fetch_all(peer, b, paths)
                    fetch_all(peer, b, paths)
            loads: dict[str, list[Load]] = {peer.name: [] for peer in running if peer.name in wanted}
            for _ in range(options.rounds):
                for peer in running:
                    if peer.name in wanted:
                        loads[peer.name].append(wrk(peer, b, paths, seconds=int(options.seconds)))
            shown = {name: best(rounds) for name, rounds in loads.items()}
            report(size, shown, options.disk)


def report(size: int, shown: dict[str, Load], disk: bool) -> None:
    ours = shown["edged"]
    print(f"{size >> 10} KiB {'from disk' if disk else 'from memory'}")
    for name, load in shown.items():
        ratio = load.cpu_per_100k / ours.cpu_per_100k
        print(
            f"  {name:10} {load.cpu_per_100k:7.2f} CPU s/100k  {load.per_s:9.0f}/s  p99 {load.p99_ms:6.1f} ms"
            f"  x{ratio:.2f} our CPU"
        )
    bar = shown["nginx"].cpu_per_100k if disk else BARS[size]
    verdict = "met" if ours.cpu_per_100k <= bar else "missed"
    print(f"  bar: {bar:.2f} CPU s/100k: {verdict}")
    if "squid" in shown or "squid-disk" in shown:
        squid = shown.get("squid") or shown["squid-disk"]
        verdict = "met" if ours.p99_ms <= squid.p99_ms else "missed"
        print(f"  bar: p99 <= Squid's {squid.p99_ms:.1f} ms: {verdict}")


if __name__ == "__main__":
    main()
