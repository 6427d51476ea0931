"""netd's bars: policy changes under a storm of new connections, large destination sets, one change.

    python -m tests.bench.egress_nat [--changes 100] [--destinations 5000]

Needs root. Three namespaces; the storm runs from node to internet through the edge, netd as `nobody`
with CAP_NET_ADMIN only. Peer figures to hold against: `nft -f` as a subprocess, in the same run.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from services.egress.netd import messages
from services.egress.netd.client import NetdClient
from tests.support.netns import NET4, Namespace, Site, site

SOURCE = Path(__file__).with_name("egress_load.c")
CONFIG = """
[site]
name = "BENCH"
[egress.nat]
inside = ["ib0"]
[[egress.source]]
name = "nodes"
networks = ["10.77.0.0/24", "fd77::/64"]
[[egress.destination]]
name = "storm"
networks = ["{target}/32"]
ports = [9000]
[[egress.destination]]
name = "many"
networks = [{many}]
ports = [443, 8443]
[[egress.rule]]
name = "storm"
to = ["storm"]
[[egress.rule]]
name = "many"
to = ["many"]
connections = {connections}
"""


def networks(count: int) -> list[str]:
    """Networks that do not touch each other."""
    base = int(ipaddress.ip_address("20.0.0.0"))
    return [f"{ipaddress.ip_address(base + 2 * 256 * n)}/24" for n in range(count)]


class Bench:
    """A site with netd."""

    def __init__(self, place: Site, directory: Path) -> None:
        self.place, self.directory = place, directory
        self.client = NetdClient(directory / "netd.sock")

    def write(self, many: list[str], connections: int = 1000) -> None:
        quoted = ", ".join(f'"{net}"' for net in many)
        text = CONFIG.format(target=NET4, many=quoted, connections=connections)
        (self.directory / "edged.toml").write_text(text)

    def start(self) -> None:
        self.place.edge.start(
            sys.executable, "-m", "services.egress.netd", "--config", str(self.directory / "edged.toml"),
            "--socket", str(self.directory / "netd.sock"), "--front", "daemon", "--user", "nobody",
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.request(messages.TakeUsage())
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def apply_ms(self) -> tuple[float, int]:
        """Milliseconds of one apply as an administrator sees it, and the commands it took."""
        began = time.perf_counter()
        parts = self.client.request(messages.Apply())
        took = (time.perf_counter() - began) * 1000
        text = "".join(part.text for part in parts if isinstance(part, messages.Text))
        return took, len(text.splitlines())


def storm(node: Namespace, program: str, seconds: float, said: list[str]) -> None:
    argv = [program, "setup", NET4, "1", NET4, "9000", "direct", "8", str(seconds)]
    said += node.run(*argv, timeout_s=seconds + 60).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--destinations", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, site("bench") as place:
        directory = Path(name)
        directory.chmod(0o755)
        program = str(directory / "load")
        subprocess.run(["gcc", "-O2", "-pthread", "-o", program, str(SOURCE)], check=True)
        place.internet.start(program, "serve", NET4, "9000")
        bench = Bench(place, directory)
        bench.write(["20.0.0.0/24"])
        bench.start()
        changes_under_storm(bench, program, options.changes)
        large_sets(bench, options.destinations)


def changes_under_storm(bench: Bench, program: str, changes: int) -> None:
    said: list[str] = []
    seconds = max(3.0, changes * 0.05)
    thread = threading.Thread(target=storm, args=(bench.place.node, program, seconds, said))
    thread.start()
    times = []
    for number in range(changes):
        bench.write(["20.0.0.0/24", *networks(number % 7)[1:]], connections=100 + number % 5)
        times.append(bench.apply_ms()[0])
    thread.join()
    done, failed, took = (float(word) for word in said)
    print(
        f"{changes} changes in {sum(times) / 1000:.2f} s (median {statistics.median(times):.1f} ms) during "
        f"{done:.0f} new connections in {took:.1f} s: {failed:.0f} failed"
    )


def large_sets(bench: Bench, count: int) -> None:
    many = networks(count)
    bench.write(many)
    took, commands = bench.apply_ms()
    print(f"{count} destinations applied: {took:.0f} ms, {commands} commands")
    changed = []
    for number in range(5):
        bench.write([*many, f"30.0.{number}.0/24"])
        changed.append(bench.apply_ms()[0])
    print(f"one destination changed among {count}: median {statistics.median(changed):.1f} ms")
    ruleset = bench.directory / "peer.nft"
    elements = ", ".join(many)
    ruleset.write_text(
        "table inet peer { set s { type ipv4_addr; flags interval; }; }\nflush set inet peer s\n"
        f"add element inet peer s {{ {elements} }}\n"
    )
    began = time.perf_counter()
    bench.place.edge.run("nft", "-f", str(ruleset))
    print(f"peer: nft -f with {count} elements: {(time.perf_counter() - began) * 1000:.0f} ms")
    began = time.perf_counter()
    bench.place.edge.run("nft", "add element inet peer s { 30.9.9.0/24 }")
    print(f"peer: nft add one element among {count}: {(time.perf_counter() - began) * 1000:.1f} ms")


if __name__ == "__main__":
    if os.getuid() != 0:
        raise SystemExit("needs root")
    main()
