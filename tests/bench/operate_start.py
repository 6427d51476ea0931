"""From `edged run` with every service to ready: `python -m tests.bench.operate_start [--rounds 5] [--undisturbed]`.

Ready is READY=1 to the service manager: every listener is open. CPU is of all processes until then, accountd
and its zygote included. Bar: 2 s. Beside it in the same run, the floor: an interpreter that only imports the
libraries this needs (aiohttp, SQLAlchemy, pydantic, cryptography, msgspec, PyJWT, uvloop, prometheus_client).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.operate_check import timed
from tests.real.jobs.fixtures import local_jobs
from tests.support.cpu import pss_bytes, tree, tree_seconds, undisturbed
from tests.support.site import Site
from tests.support.toml import dumps

LISTEN = {"listen": ["127.0.0.1:0"]}
LOOPBACK = ["127.0.0.0/8"]
LIBRARIES = (
    "aiohttp.web, click, cryptography.x509, jwt, msgspec, prometheus_client, pydantic, sqlalchemy, uvloop"
)
READY_S = 60.0


def every_service(root: Path) -> dict[str, Any]:
    """Sections that configure all there is; of root://, what edged itself runs."""
    token = root / "admin.token"
    token.write_text("an-admin-token-of-more-than-32-characters\n")
    (root / "data").mkdir()
    return {
        "log": {"level": "warning"},
        "jobs": local_jobs(
            root, arc={}, interlink={**LISTEN, "runtime": {"kind": "none", "images": ["docker.io/library/"]}}
        ),
        "storage": {
            **LISTEN,
            "export": [{"prefix": "/cms", "root": str(root / "data"), "vo": "cms"}],
            "xrootd": {"bin": str(root), "gate": str(root / "gate.so"), "report_port": 19931},
        },
        "cache": {
            **LISTEN,
            "store": str(root / "cache"),
            "destination": [{"name": "origin", "hosts": ["127.0.0.1:80"]}],
        },
        "egress": {
            **LISTEN,
            "api": LISTEN,
            "inside": LOOPBACK,
            "source": [{"name": "nodes", "networks": LOOPBACK, "vo": "cms"}],
            "destination": [{"name": "origin", "networks": LOOPBACK, "ports": [80]}],
            "rule": [{"name": "out", "to": ["origin"]}],
        },
        "portal": {**LISTEN, "admin_token_file": str(token)},
    }


def started(site: Site, told: socket.socket) -> tuple[float, float, str]:
    """One start until it is ready: wall seconds, CPU seconds, memory of each process."""
    with (site.root / "edged.log").open("ab") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "edged", "run", "--config", str(site.file)],
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "NOTIFY_SOCKET": told.getsockname()},
        )
        try:
            while b"READY=1" not in told.recv(4096):
                pass
            wall, cpu = time.perf_counter() - began, tree_seconds(process.pid)
            memory = " + ".join(f"{pss_bytes(pid) / 1e6:.0f}" for pid in tree(process.pid))
        except TimeoutError:
            sys.exit(site.log()[-4000:])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    return wall, cpu, memory


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--undisturbed", action="store_true", help="before all other work on the machine")
    given = parser.parse_args()
    if given.undisturbed:
        undisturbed()
    with (
        tempfile.TemporaryDirectory(prefix="edged-bench-") as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        root = Path(name)
        told.bind(str(root / "notify"))
        told.settimeout(READY_S)
        site = Site(root)
        site.sections.update(every_service(root))
        site.file.write_text(dumps(site.settings()))
        ours, bare = [], []
        for _ in range(given.rounds):  # in turns: the machine's other load meets both
            ours.append(started(site, told))
            bare.append(timed([sys.executable, "-c", f"import {LIBRARIES}"]))
        wall, cpu = statistics.median(one[0] for one in ours), statistics.median(one[1] for one in ours)
        floor = statistics.median(one[1] for one in bare)
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs (other work counts)")
        print(f"to ready: {wall:.2f} s wall (best {min(ours)[0]:.2f}), {cpu:.2f} s CPU (bar 2 s wall)")
        print(f"the libraries alone: {floor:.2f} s CPU; ratio {cpu / floor:.1f}")
        print(f"memory when ready, PSS MB: {ours[-1][2]}")


if __name__ == "__main__":
    main()
