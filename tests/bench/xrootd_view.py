"""The root:// view beside a hand-written plain xrootd, in one run: 1 GiB both ways, small files, stats; starts, kills.

    python -m tests.bench.xrootd_view [--gib 1] [--files 2000] [--stats 2000]

Both serve with TLS and ztn from /dev/shm. The peer's authorization is the server's own (SciTokens); ours asks
edged's gate. Prints seconds, CPU seconds of the servers, and the ratio ours / plain (CPU). Needs root.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.storage.xrootd import render
from tests.support.cpu import tree_seconds
from tests.support.local_accounts import CMSPRD
from tests.support.waiting import until
from tests.support.xrootd import HOST, XrootdSite, free_ports

ROUNDS = 3
CREATES = 50
KILLS = (  # instance, program, bar in seconds
    ("cms-cmsprd", "xrootd", 2),
    ("cms-cmsprd", "cmsd", 12),
    ("redirector", "xrootd", 12),
    ("redirector", "cmsd", 12),
)


@dataclass
class Server:
    """One side: where it is, and the process whose CPU counts."""

    name: str
    url: str
    pid: int


def plain(site: XrootdSite, directory: Path) -> subprocess.Popen[bytes]:
    """The peer: what a site would write by hand, without edged."""
    (port,) = free_ports(1)
    ours = site.servers / "cms-cmsprd"
    for name in ("admin", "data/cms"):
        (directory / name).mkdir(parents=True)
    for path in (directory, *directory.rglob("*")):
        os.chown(path, CMSPRD.uid, CMSPRD.uid)
    (directory / "scitokens.cfg").write_text((ours / render.SCITOKENS).read_text())
    (directory / "xrootd.cfg").write_text(f"""
all.role server
xrd.port {port}
all.adminpath {directory}/admin
all.pidpath {directory}/admin
oss.localroot {directory}/data
all.export /cms
xrd.tls {ours}/cert.pem {ours}/key.pem
xrd.tlsca noverify
xrootd.tls capable all
xrootd.seclib libXrdSec.so
sec.protocol ztn
sec.protbind * only ztn
ofs.authorize 1
ofs.authlib libXrdAccSciTokens.so config={directory}/scitokens.cfg
xrootd.chksum max 4 adler32 crc32c md5
""")
    become = ["setpriv", f"--reuid={CMSPRD.uid}", f"--regid={CMSPRD.uid}", "--clear-groups"]
    environment = {
        "XDG_CACHE_HOME": str(site.directory / "run/xrootd/keys"),
        "PATH": "/usr/bin:/bin",
        "HOME": "/",
    }
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*become, "xrootd", "-c", str(directory / "xrootd.cfg")],
            env=environment, stdout=log, stderr=log, cwd=directory,
        )  # fmt: skip
    url = f"roots://{HOST}:{port}"
    until(lambda: site.run(site.token(), "xrdfs", url, "stat", "/cms"), "the plain server", 20)
    process.url = url  # type: ignore[attr-defined]
    return process


def measured(server: Server, work: Callable[[Server], None]) -> tuple[float, float]:
    """Seconds and the server's CPU seconds, the better of ROUNDS."""
    best = (1e9, 1e9)
    for _ in range(ROUNDS):
        began, cpu = time.monotonic(), tree_seconds(server.pid)
        work(server)
        best = min(best, (time.monotonic() - began, tree_seconds(server.pid) - cpu), key=lambda pair: pair[1])
    return best


def compare(name: str, unit: str, count: float, sides: list[Server], work: Callable[[Server], None]) -> None:
    """One line: CPU per unit of both, and the ratio."""
    found = {side.name: measured(side, work) for side in sides}
    parts = [
        f"{side} {wall:6.2f} s, {cpu / count * 1000:9.3f} CPU ms/{unit}"
        for side, (wall, cpu) in found.items()
    ]
    (_, first), (_, second) = found["edged"], found["plain"]
    print(f"{name:16} {'   '.join(parts)}   ratio {first / max(second, 1e-9):.2f}", flush=True)


def data_path(
    site: XrootdSite, sides: list[Server], directory: Path, gib: float, files: int, stats: int
) -> None:
    token = site.token()
    big, many = directory / "big", directory / "many"
    with big.open("wb") as out:
        for _ in range(int(gib * 64)):
            out.write(os.urandom(1 << 20) * 16)
    many.mkdir()
    for number in range(files):
        (many / f"{number:05}").write_bytes(os.urandom(4096))

    def run(*argv: str | Path) -> None:
        done = site.run(token, *argv, timeout_s=300, XRD_REQUESTTIMEOUT="120", XRD_STREAMTIMEOUT="120")
        assert done, done

    compare("up", "GiB", gib, sides, lambda side: run("xrdcp", "-s", "-f", big, f"{side.url}//cms/big"))
    compare(
        "down", "GiB", gib, sides, lambda side: run("xrdcp", "-s", "-f", f"{side.url}//cms/big", "/dev/null")
    )
    for side in sides:
        run("xrdfs", side.url, "mkdir", "-p", "/cms/tree")

    def up_many(side: Server) -> None:
        run("xrdcp", "-s", "-f", "-r", "--parallel", "8", many, f"{side.url}//cms/tree/")

    compare("small files up", "file", files, sides, up_many)
    script = "\n".join(["stat /cms/big"] * stats) + "\nexit\n"

    def storm(side: Server) -> None:
        subprocess.run(
            ["xrdfs", side.url], input=script, text=True, capture_output=True, timeout=300, check=True,
            env={**os.environ, **site.client_environment, "BEARER_TOKEN": token},
        )  # fmt: skip

    compare("stat storm", "stat", stats, sides, storm)


def creates(site: XrootdSite) -> None:
    """New names through the redirector by clients that are logged in: directories, and files that are open."""
    os.environ.update({**site.client_environment, "BEARER_TOKEN": site.token()})  # read at the first login
    client: Any = importlib.import_module("XRootD.client")  # untyped
    flags: Any = importlib.import_module("XRootD.client.flags")
    there, taken = client.FileSystem(site.url), []
    for number in range(CREATES):
        began = time.monotonic()
        made, _ = there.mkdir(f"/cms/made-{number}")
        half = time.monotonic()
        opened, _ = client.File().open(f"{site.url}//cms/file-{number}", flags.OpenFlags.NEW)
        taken += [half - began, time.monotonic() - half]
        assert made.ok and opened.ok, (made, opened)
    median, worst = sorted(taken)[CREATES] * 1000, max(taken) * 1000
    print(f"creates          median {median:.1f} ms, worst {worst:.0f} ms of {len(taken)} (bar 200)")


def life(directory: Path) -> None:
    """Start of the whole view (two VOs behind a redirector), and how long each kill is felt."""
    site = XrootdSite(directory)
    began = time.monotonic()
    site.start(ready=False)
    try:
        token = site.token()
        until(lambda: site.log.exists() and site.events("server started"), "servers", 60, 0.05)
        servers = time.monotonic()
        until(
            lambda: site.fs(token, "stat", "/cms") and site.fs(site.token(vo="atlas"), "stat", "/atlas"),
            "all",
            60,
        )
        now = time.monotonic()
        print(
            f"start            {now - began:.1f} s in all, {now - servers:.1f} s from the servers' start (bar 15)"
        )
        until(site.ready, "ready", 60)
        creates(site)
        for instance, program, bar in KILLS:
            pid = site.server(instance, program)
            os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            until(lambda: site.server(instance, program) not in (0, pid), "again", 30, 0.01)  # noqa: B023
            until(lambda: site.fs(token, "stat", "/cms"), "an answer", 60, 0.01)
            took = time.monotonic() - began
            print(f"killed {instance + ' ' + program:20} answered again after {took:.1f} s (bar {bar})")
    finally:
        site.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--stats", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)
        for name in ("one", "peer", "two"):
            (directory / name).mkdir(mode=0o755)
        with XrootdSite(directory / "one", vos=("cms",), settings={"probe_s": 600.0}) as site:
            peer = plain(site, directory / "peer")
            try:
                ours = Server("edged", site.url, site.server("cms-cmsprd"))
                theirs = Server("plain", peer.url, peer.pid)  # type: ignore[attr-defined]
                data_path(site, [ours, theirs], directory, given.gib, given.files, given.stats)
            finally:
                peer.terminate()
                peer.wait(10)
        life(directory / "two")


if __name__ == "__main__":
    main()
