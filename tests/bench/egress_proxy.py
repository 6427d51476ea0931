"""The proxy beside Squid, tinyproxy, microsocks and dante: bytes, set-ups, memory of open tunnels.

    python -m tests.bench.egress_proxy [--bytes 4G] [--seconds 3] [--rounds 2] [--only edged,squid]

Needs root (a network namespace of its own), gcc, and the peers that are to be shown. The gate runs with
policy, accounts in SQLite, access log and audit file; the peers without any log. CPU is user + system of
all processes of the proxy. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROXY, TARGET, PORT = "198.51.100.1", "198.51.100.2", "9000"
SOURCE = Path(__file__).with_name("egress_load.c")

GATE = f"""
[site]
name = "BENCH"
[runtime]
state = "{{directory}}"
[log]
audit_file = "{{directory}}/audit.log"
[egress]
listen = ["{PROXY}:3001"]
inside = ["198.51.100.0/24"]
[egress.limits]
connections_per_source = 16384
[[egress.source]]
name = "nodes"
networks = ["10.0.0.0/8", "198.51.100.0/24"]
vo = "cms"
[[egress.destination]]
name = "stratum-1s"
hosts = ["*.cern.ch", "*.opensciencegrid.org"]
networks = ["192.0.2.0/24"]
ports = [80, 8000]
[[egress.destination]]
name = "services"
networks = ["198.51.100.0/24", "203.0.113.0/24"]
ports = [443, 1094, "9000-9100"]
[[egress.rule]]
name = "software"
to = ["stratum-1s"]
[[egress.rule]]
name = "no atlas here"
action = "refuse"
vos = ["atlas"]
to = ["services"]
[[egress.rule]]
name = "services"
to = ["services"]
""".replace("no atlas here", "no-atlas-here")

SQUID = """
http_port {proxy}:3002
acl all_ports port 1-65535
http_access allow all
cache deny all
access_log none
cache_log /dev/null
pid_filename none
workers 1
max_filedescriptors 65536
shutdown_lifetime 0 seconds
coredump_dir /tmp
"""
TINYPROXY = """
Port 3003
Listen {proxy}
Timeout 600
MaxClients 4096
LogLevel Critical
LogFile "/dev/null"
"""
DANTE = """
logoutput: /dev/null
internal: {proxy} port = 3005
external: {proxy}
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """One proxy under test."""

    name: str
    port: int
    kind: str
    argv: tuple[str, ...]
    program: str


def peers(directory: Path) -> list[Peer]:
    files = {}
    for name, text in (
        ("gate.toml", GATE),
        ("squid.conf", SQUID),
        ("tiny.conf", TINYPROXY),
        ("dante.conf", DANTE),
    ):
        files[name] = directory / name
        body = text.format(directory=directory) if name == "gate.toml" else text.format(proxy=PROXY)
        files[name].write_text(body)
    gate = (sys.executable, "-m", "tests.bench.egress_serve", str(files["gate.toml"]))
    return [
        Peer("edged connect", 3001, "connect", gate, sys.executable),
        Peer("edged socks", 3001, "socks", gate, sys.executable),
        Peer("squid", 3002, "connect", ("squid", "-N", "-f", str(files["squid.conf"])), "squid"),
        Peer("tinyproxy", 3003, "connect", ("tinyproxy", "-d", "-c", str(files["tiny.conf"])), "tinyproxy"),
        Peer("microsocks", 3004, "socks", ("microsocks", "-i", PROXY, "-p", "3004"), "microsocks"),
        Peer("dante", 3005, "socks", ("danted", "-f", str(files["dante.conf"])), "danted"),
    ]


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*"):
            try:
                found += [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
    return found


def cpu_s(pid: int) -> float:
    """User and system seconds of the family, reaped children included."""
    ticks = 0
    for member in family(pid):
        try:
            words = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(words[index]) for index in (11, 12, 13, 14))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    total = 0
    for member in family(pid):
        for line in Path(f"/proc/{member}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total / 1024


@contextmanager
def running(peer: Peer) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        peer.argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 15
        while subprocess.run(["nc", "-z", PROXY, str(peer.port)], check=False).returncode:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("does not listen")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


class Load:
    """The load generator, compiled."""

    def __init__(self, directory: Path) -> None:
        self.program = str(directory / "load")
        subprocess.run(["gcc", "-O2", "-pthread", "-o", self.program, str(SOURCE)], check=True)

    def argv(self, mode: str, peer: Peer, *words: str) -> list[str]:
        return [self.program, mode, PROXY, str(peer.port), TARGET, PORT, peer.kind, *words]

    def run(self, mode: str, peer: Peer, *words: str) -> list[str]:
        return subprocess.run(
            self.argv(mode, peer, *words), check=True, capture_output=True, text=True, timeout=300
        ).stdout.split()


def measure(peer: Peer, load: Load, total: int, seconds: float) -> dict[str, float]:
    figures = {}
    with running(peer) as process:
        load.run("stream", peer, "1", str(1 << 28))
        for streams in (1, 64):
            before = cpu_s(process.pid)
            (took,) = load.run("stream", peer, str(streams), str(total // streams))
            gigabytes = total / 1e9
            figures[f"{streams} GB/s"] = gigabytes / float(took)
            figures[f"{streams} CPU s/GB"] = (cpu_s(process.pid) - before) / gigabytes
        before = cpu_s(process.pid)
        done, errors, took = load.run("setup", peer, "16", str(seconds))
        time.sleep(0.3)
        figures["set-ups/s"] = float(done) / float(took)
        figures["CPU s/1000"] = (cpu_s(process.pid) - before) / float(done) * 1000
        figures["errors"] = float(errors)
    return figures


def memory(peer: Peer, load: Load, count: int) -> float:
    with running(peer) as process:
        holder = subprocess.Popen(
            load.argv("hold", peer, str(count)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None and holder.stdin is not None
        said = holder.stdout.readline()
        try:
            return resident_mb(process.pid) if said.startswith(b"held") else float("nan")
        finally:
            holder.stdin.close()
            holder.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=float, default=4, help="GB moved per stream measurement")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="Names to run, by prefix, comma separated")
    parser.add_argument("--tunnels", type=int, default=4000)
    options = parser.parse_args()
    if os.environ.get("EDGED_BENCH_NETNS") != "1":
        os.environ["EDGED_BENCH_NETNS"] = "1"
        os.execvp(
            "unshare", ["unshare", "-n", sys.executable, "-m", "tests.bench.egress_proxy", *sys.argv[1:]]
        )
    for address in ("127.0.0.1/8", f"{PROXY}/32", f"{TARGET}/32"):
        subprocess.run(["ip", "address", "add", address, "dev", "lo"], check=False, capture_output=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        load = Load(directory)
        source = subprocess.Popen([load.program, "serve", TARGET, PORT])
        try:
            compare(options, directory, load)
        finally:
            source.kill()
            source.wait()


def compare(options: argparse.Namespace, directory: Path, load: Load) -> None:
    wanted = [word for word in options.only.split(",") if word]
    chosen = [
        peer
        for peer in peers(directory)
        if shutil.which(peer.program) and (not wanted or any(peer.name.startswith(word) for word in wanted))
    ]
    rounds: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in chosen}
    for _ in range(options.rounds):  # by turns: what else runs on the machine hits all of them
        for peer in chosen:
            try:
                rounds[peer.name].append(measure(peer, load, int(options.bytes * 1e9), options.seconds))
            except (RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{peer.name}: {error}")
    results = {
        name: {key: statistics.median(r[key] for r in found) for key in found[0]}
        for name, found in rounds.items()
        if found
    }
    for peer in chosen:
        if peer.name in results and peer.kind == "connect" and options.tunnels:
            results[peer.name][f"{options.tunnels} tunnels MB"] = memory(peer, load, options.tunnels)
    for name, figures in results.items():
        print(f"{name:14}", "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    base = results.get("squid", {})
    for name, figures in results.items():
        ratios = {key: figures[key] / base[key] for key in figures if base.get(key)}
        if ratios and name != "squid":
            print(f"{name:14} / squid:", "  ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items()))


if __name__ == "__main__":
    main()
