"""The cache and its peers as processes, with the same content, logs and policy, one origin behind all.

Peers are Debian's squid, varnish and nginx (.ci/packages-bench.txt). Everything lives in a temporary
directory and on loopback ports; every process is ours and is stopped at the end.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = "bench.example.org"
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(slots=True)
class Peer:
    """A running proxy. ``processes`` are those whose CPU counts."""

    name: str
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def cpu_s(self) -> float:
        """User and system seconds of all its processes, children included."""
        return sum(cpu_of(pid) for pid in family(p.pid for p in self.processes))

    def rss(self) -> int:
        """Resident bytes of all its processes, shared pages counted once (Pss)."""
        total = 0
        for pid in family(p.pid for p in self.processes):
            match = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(match[1]) * 1024 if match else 0
        return total


def family(roots: Iterator[int] | Sequence[int]) -> set[int]:
    """The pids and all their descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = {pid for pid in roots if pid in parents}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def cpu_of(pid: int) -> float:
    """User plus system seconds of one process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


class Bench:
    """A working directory, an origin, and the peers started in it."""

    def __init__(self, root: Path, core: int | None = 0) -> None:
        self.root = root
        self.core = core
        self.started: list[subprocess.Popen[bytes]] = []
        self.origin_port = free_port()
        root.chmod(0o777)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.origin_port}"

    def objects(self, count: int, size: int, seed: int = 0) -> list[str]:
        """Make ``count`` random objects named by their hash; their paths."""
        paths = []
        for _ in range(count):
            body = os.urandom(size)
            digest = hashlib.sha1(body).hexdigest()
            path = f"/cvmfs/{REPOSITORY}/data/{digest[:2]}/{digest[2:]}"
            file = self.root / "www" / path[1:]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
            paths.append(path)
        return paths

    def asked(self, path: str) -> int:
        """How often the origin was asked for ``path``."""
        log = self.root / "origin/access.log"
        return log.read_text().count(path) if log.exists() else 0

    def spawn(self, argv: Sequence[object], *, pin: bool = True) -> subprocess.Popen[bytes]:
        """A process of ours, pinned to the peers' core."""
        words = list(map(str, argv))
        if pin and self.core is not None:
            words = ["taskset", "-c", str(self.core), *words]
        log = (self.root / f"{len(self.started)}.log").open("wb")
        process = subprocess.Popen(
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """End every process group we started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.started:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue
            for process in self.started:
                try:
                    process.wait(3)
                except subprocess.TimeoutExpired:
                    continue

    def start_origin(self) -> Peer:
        """nginx serving the files, as Apache on a stratum-1 would."""
        directory = self.root / "origin"
        directory.mkdir()
        (self.root / "www").mkdir(exist_ok=True)
        config = directory / "nginx.conf"
        config.write_text(
            f"user root; daemon off; worker_processes 1; pid {directory}/pid;\n"
            f"error_log {directory}/error.log;\n"
            "events { worker_connections 8192; }\n"
            f"http {{ access_log {directory}/access.log; sendfile on; keepalive_requests 1000000;\n"
            f"server {{ listen 127.0.0.1:{self.origin_port} backlog=4096; root {self.root}/www;\n"
            "add_header Cache-Control max-age=259200; etag off; } }\n"
        )
        return self._ready(Peer("origin", self.origin_port, [self.spawn(["nginx", "-c", config], pin=False)]))

    def start_edged(self, name: str = "edged", **cache: object) -> Peer:
        """The cache, as `edged run cache` starts it."""
        directory = self.root / name
        directory.mkdir()
        port = free_port()
        settings = {
            "listen": [f"127.0.0.1:{port}"],
            "store": str(directory / "store"),
            "access_log": str(directory / "access.log"),
            "disk_free": 0,
            **cache,
        }
        lines = [f"{key} = {_toml(value)}" for key, value in settings.items()]
        config = directory / "edged.toml"
        config.write_text(
            f'[site]\nname = "BENCH"\n[runtime]\nrun = "{directory}/run"\nstate = "{directory}/state"\n'
            f'[log]\nlevel = "warning"\n[observe.services]\ncache = "127.0.0.1:{free_port()}"\n'
            f"[cache]\n{chr(10).join(lines)}\n"
            f"[cache.limits]\nconnections_per_source = 65536\nconnections = 65536\n"
            f'[[cache.repository]]\nname = "{REPOSITORY}"\nstratums = ["{self.origin}"]\n'
        )
        argv = [sys.executable, "-m", "edged", "run", "cache", "--config", config]
        return self._ready(Peer(name, port, [self.spawn(argv)]))

    def start_squid(self, *, memory: bool = True) -> Peer:
        """Squid as the CVMFS documentation configures it."""
        directory = self.root / ("squid" if memory else "squid-disk")
        directory.mkdir()
        port = free_port()
        (directory / "cache").mkdir()
        shutil.chown(directory, "proxy", "proxy")
        shutil.chown(directory / "cache", "proxy", "proxy")
        store = "" if memory else f"cache_dir aufs {directory}/cache 4000 16 256\n"
        config = directory / "squid.conf"
        config.write_text(
            f"http_port 127.0.0.1:{port}\npid_filename {directory}/pid\ncoredump_dir {directory}\n"
            f"access_log stdio:{directory}/access.log\ncache_log {directory}/cache.log\n"
            "cache_store_log none\n"
            f"acl nodes src 127.0.0.0/8\nhttp_access allow nodes\nhttp_access deny all\n"
            f"collapsed_forwarding on\nminimum_expiry_time 0\nmaximum_object_size 1024 MB\n"
            f"cache_mem {'512 MB' if memory else '8 MB'}\n"
            f"maximum_object_size_in_memory {'8 MB' if memory else '1 KB'}\n"
            f"max_filedescriptors 16384\nshutdown_lifetime 0 seconds\n{store}"
        )
        if not memory:
            subprocess.run(["squid", "-f", config, "-N", "-z"], check=True, capture_output=True)
        process = self.spawn(["squid", "-f", config, "-N"])
        return self._ready(Peer("squid" if memory else "squid-disk", port, [process]))

    def start_varnish(self) -> Peer:
        """Varnish in memory, with its log reader writing an access log."""
        directory = self.root / "varnish"
        directory.mkdir()
        port = free_port()
        vcl = directory / "default.vcl"
        vcl.write_text(
            "vcl 4.1;\n"
            f'backend origin {{ .host = "127.0.0.1"; .port = "{self.origin_port}"; }}\n'
            'acl nodes { "127.0.0.0"/8; }\n'
            "sub vcl_recv { if (client.ip !~ nodes) { return (synth(403)); } }\n"
        )
        work = directory / "work"
        argv = ["varnishd", "-F", "-f", vcl, "-a", f"127.0.0.1:{port}", "-s", "malloc,512m", "-n", work]
        daemon = self.spawn([*argv, "-T", "none"])
        peer = self._ready(Peer("varnish", port, [daemon]))
        log = directory / "access.log"
        peer.processes.append(self.spawn(["varnishncsa", "-n", work, "-w", log]))
        return peer

    def start_nginx(self) -> Peer:
        """nginx with proxy_cache, whose hits come from the page cache."""
        directory = self.root / "nginx"
        directory.mkdir()
        port = free_port()
        config = directory / "nginx.conf"
        config.write_text(
            f"user root; daemon off; worker_processes 1; pid {directory}/pid;\n"
            f"error_log {directory}/error.log;\n"
            "worker_rlimit_nofile 65536; events { worker_connections 16384; }\n"
            f"http {{ access_log {directory}/access.log; sendfile on; tcp_nodelay on;\n"
            "keepalive_requests 1000000;\n"
            f"proxy_cache_path {directory}/cache levels=1:2 keys_zone=c:64m max_size=4g use_temp_path=off;\n"
            f"server {{ listen 127.0.0.1:{port} backlog=4096; allow 127.0.0.0/8; deny all;\n"
            f"location / {{ proxy_pass {self.origin}; proxy_cache c; proxy_cache_key $request_uri;"
            ' proxy_cache_lock on; proxy_http_version 1.1; proxy_set_header Connection ""; } } }\n'
        )
        return self._ready(Peer("nginx", port, [self.spawn(["nginx", "-c", config])]))

    def _ready(self, peer: Peer) -> Peer:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if any(process.poll() is not None for process in peer.processes):
                break
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", peer.port)) == 0:
                    return peer
            time.sleep(0.05)
        said = "\n".join(log.read_text(errors="replace")[-2000:] for log in self.root.glob("*.log"))
        raise RuntimeError(f"{peer.name} did not start: {said}")


@contextmanager
def bench(core: int | None = 0) -> Iterator[Bench]:
    """A bench in a temporary directory, cleaned up at the end."""
    import tempfile

    root = Path(tempfile.mkdtemp(prefix="cache-bench-"))
    made = Bench(root, core)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what we started is stopped then too
    try:
        made.start_origin()
        yield made
    finally:
        made.stop()
        shutil.rmtree(root, ignore_errors=True)


def fetch_all(peer: Peer, bench_: Bench, paths: Sequence[str]) -> None:
    """Every object once, in absolute form, on one connection; fails loudly on a wrong body."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=30)
    for path in paths:
        connection.request("GET", bench_.origin + path)
        answer = connection.getresponse()
        body = answer.read()
        digest = path.split("/data/")[1].replace("/", "")
        if answer.status != 200 or hashlib.sha1(body).hexdigest() != digest:
            raise RuntimeError(f"{peer.name}: {answer.status} for {path}")
    connection.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What one wrk run measured."""

    requests: int
    per_s: float
    p99_ms: float
    cpu_s: float

    @property
    def cpu_per_100k(self) -> float:
        return self.cpu_s / self.requests * 100_000 if self.requests else float("nan")


def wrk(peer: Peer, bench_: Bench, paths: Sequence[str], *, seconds: float, connections: int = 48) -> Load:
    """wrk in absolute form over ``paths``, round robin, on the other core."""
    script = bench_.root / "paths.lua"
    listed = ",".join(f'"{bench_.origin}{path}"' for path in paths)
    script.write_text(
        f"local paths = {{{listed}}}\nlocal i = 0\n"
        "request = function() i = i + 1; return wrk.format('GET', paths[(i % #paths) + 1]) end\n"
        "done = function(s, l, r) io.write(string.format('R %d %f %f %d\\n', s.requests, s.duration / 1e6,"
        " l:percentile(99) / 1000,"
        " s.errors.status + s.errors.connect + s.errors.read + s.errors.timeout)) end\n"
    )
    url = f"http://127.0.0.1:{peer.port}"
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
    if bench_.core is not None:
        argv = ["taskset", "-c", "1", *argv]
    before = peer.cpu_s()
    output = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    time.sleep(0.1)  # the log readers finish
    cpu = peer.cpu_s() - before
    match = re.search(r"^R (\d+) ([\d.]+) ([\d.]+) (\d+)", output, re.MULTILINE)
    if match is None or int(match[4]):
        raise RuntimeError(f"{peer.name}: {output}")
    return Load(int(match[1]), int(match[1]) / float(match[2]), float(match[3]), cpu)


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else f'"{value}"'
