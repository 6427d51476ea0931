"""A throw-away A-REX 6 (Debian's nordugrid-arc-arex) on loopback, to measure beside: its REST daemon only.

Without its grid manager nothing it accepts ever runs, as with jobs of ours that wait for an input.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edged.identity.testca import ThrowAwayCa
from tests.support.gridca import GridCa

START = Path("/usr/share/arc/arc-arex-ws-start")
CONFIG = """[common]
hostname = localhost
x509_host_key = {key}
x509_host_cert = {certificate}
x509_cert_dir = {authorities}
[authgroup:all]
subject = {subject}
[mapping]
map_to_user = all nobody:nogroup
policy_on_map = stop
[lrms]
lrms = fork
[arex]
controldir = {root}/control
sessiondir = {root}/sessions
pidfile = {root}/arex.pid
logfile = {root}/arex.log
joblog = {root}/joblog
[arex/ws]
wsurl = https://localhost:{port}/arex
pidfile = {root}/ws.pid
logfile = {root}/ws.log
[arex/ws/jobs]
allowaccess = all
[infosys]
logfile = {root}/infosys.log
[infosys/glue2]
[infosys/cluster]
alias = peer
[queue:fork]
"""


def missing() -> str | None:
    """Why there is no peer here, or None."""
    if os.geteuid() != 0:
        return "A-REX needs root"
    return None if START.exists() else "nordugrid-arc-arex is not installed"


@contextmanager
def running(root: Path, grid: GridCa, subject: str) -> Iterator[tuple[str, int]]:
    """Its REST base and the pid of its daemon."""
    root.mkdir(mode=0o755)
    ca = ThrowAwayCa(root / "ca")
    grid.trust(ca.file.read_bytes())
    host = ca.host("localhost", "127.0.0.1")
    for name in ("control", "sessions"):
        (root / name).mkdir()
    port = _free_port()
    config = root / "arc.conf"
    config.write_text(
        CONFIG.format(
            root=root, port=port, subject=subject, key=host.key, certificate=host.certificate,
            authorities=grid.directory,
        )
    )  # fmt: skip
    (root / "control" / "dhparam.pem").write_bytes(_dh())
    start = root / "start"
    confined = "<tcp:Listen><tcp:Interface>127.0.0.1</tcp:Interface><tcp:Port>"  # arc.conf has no word for it
    text = START.read_text().replace("<tcp:Listen><tcp:Port>", confined)
    start.write_text(re.sub(r"/bin/bash -c \"umask 0177 ; openssl dhparam.*", ":", text))
    start.chmod(0o755)
    subprocess.run(
        ["/bin/bash", str(start)], env={**os.environ, "ARC_CONFIG": str(config)}, check=True, timeout=60,
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    pid = 0
    try:
        pid = _pid(root / "ws.pid", port)
        yield f"https://localhost:{port}/arex/rest/1.0", pid
    finally:
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _dh() -> bytes:
    """Parameters made quickly: A-REX would otherwise spend minutes on its own."""
    made = subprocess.run(
        ["openssl", "dhparam", "-dsaparam", "2048"], capture_output=True, check=True, timeout=60
    )
    return made.stdout


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _pid(file: Path, port: int) -> int:
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        with suppress(OSError, ValueError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return int(file.read_text())
        time.sleep(0.1)
    raise TimeoutError(f"A-REX does not listen: {file.with_name('ws.log').read_text()[-2000:]}")
