"""The gate under ill-treatment: strangers at its socket, absurd paths and tokens, an edged that does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.local_accounts import ATLPRD, CMSPRD, LocalAccount
from tests.support.waiting import until
from tests.support.xrootd import HOST, XrootdSite, needs_xrootd

pytestmark = [pytest.mark.root, needs_xrootd]

CMS = "cms-cmsprd"
ASK = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.settimeout(10)
sock.connect(sys.argv[1])
answers = []
for packet in sys.argv[2:]:
    try:
        sock.send(packet.encode())
        answers.append(sock.recv(65536).decode() if packet == sys.argv[-1] else "")
    except OSError as error:
        answers.append("")
print(answers[-1][:3])
"""
STATS = """
import os, sys
from XRootD import client
system = client.FileSystem(sys.argv[1])
print(*(int(system.stat(line.rstrip("\\n"))[0].ok) for line in sys.stdin), flush=True)
os._exit(0)
"""


def said_to(account: LocalAccount, site: XrootdSite, *packets: str) -> str:
    """The beginning of the last answer that ``account`` gets at the gate's socket."""
    become = ["setpriv", f"--reuid={account.uid}", f"--regid={account.uid}", "--clear-groups"]
    socket = str(site.directory / "run/xrootd/gate.sock")
    argv = [*become, sys.executable, "-c", ASK, socket, *packets]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=20, check=False, cwd="/"
    ).stdout.strip()


def stats(site: XrootdSite, token: str, paths: list[str]) -> list[str]:
    """1 for each path that can be looked at, asked by one client of the data server."""
    url = f"roots://{HOST}:{site.data_port}"
    done = subprocess.run(
        [sys.executable, "-c", STATS, url], input="".join(f"{path}\n" for path in paths), text=True,
        capture_output=True, timeout=120, check=False,
        env={**os.environ, **site.client_environment, "BEARER_TOKEN": token},
    )  # fmt: skip
    return done.stdout.split()


def test_only_the_server_s_account_may_ask(site: XrootdSite) -> None:
    """The kernel tells who asks (SO_PEERCRED); a token is judged for nobody else."""
    token = site.token()
    assert said_to(CMSPRD, site, f"ask {CMS}", token) == "ok"
    for stranger in (ATLPRD, LocalAccount("nobody", "nogroup", 65534)):
        assert said_to(stranger, site, f"ask {CMS}", token) == ""
        assert said_to(stranger, site, f"watch {CMS}") == ""
        assert said_to(stranger, site, "users *") == ""
    for packet in ("ask nobody", "ask ", "way cms-cmsprd", "way proxy", " ", "x" * 60000):
        assert said_to(CMSPRD, site, packet, "connect 127.0.0.1 22") == ""
    assert site.ready()


def test_absurd_paths_and_tokens(site: XrootdSite, source: Path) -> None:
    token, server = site.token(), site.server(CMS)
    assert site.put(token, source, "/cms/absurd/file", "-f")
    inside = [
        "/cms/" + "a/" * 1000 + "file", "/cms/" + "x" * 3000, "/cms/absurd/../../etc/passwd", "/cms/..",
        "/cmsx", "/", "/cms/\x01", "/cms/\u00e9", "/cms/absurd/file/below", "/cms/absurd/file?authz=" + "A" * 6000,
        "/cms/absurd/file?authz=Bearer%20", "/cms/absurd/file?authz=Bearer%20x.y.z",
        "/cms/%2e%2e/etc/passwd",
    ]  # fmt: skip
    assert stats(site, token, [*inside, "/cms/absurd/file"])[-1] == "1"
    opened = [path[:60] for path, seen in zip(inside, stats(site, token, inside), strict=True) if seen != "0"]
    assert not opened
    assert site.server(CMS) == server, "it is still the same process"


def test_no_descriptor_is_left(site: XrootdSite, source: Path) -> None:
    token, other = site.token(), site.token(vo="atlas")
    assert site.put(token, source, "/cms/many/file", "-f")
    paths = ["/cms/many/file", "/cms/many/none", f"/cms/many/file?authz={other}"] * 100
    descriptors = Path(f"/proc/{site.server(CMS)}/fd")
    assert len(stats(site, token, paths)) == 300
    before = len(list(descriptors.iterdir()))
    assert len(stats(site, token, paths)) == 300
    until(lambda: len(list(descriptors.iterdir())) <= before + 2, "connections closed", 20)


def test_many_first_sights_at_once(site: XrootdSite, source: Path) -> None:
    """Threads of the server ask for different tokens at the same time."""
    assert site.put(site.token(), source, "/cms/parallel/file", "-f")
    good = [f"/cms/parallel/file?authz=Bearer%20{site.token()}" for _ in range(20)]
    bad = [f"/cms/parallel/file?authz=Bearer%20{site.token('storage.read:/other')}" for _ in range(20)]
    answers: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        answers[number] = stats(
            site, site.token(), [path for pair in zip(good, bad, strict=True) for path in pair]
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found == ["1", "0"] * 20 for found in answers.values()) and len(answers) == 4


def test_an_edged_that_hangs_lets_nobody_in(site: XrootdSite, source: Path) -> None:
    """No heartbeat: what was remembered counts no more, and there is no answer to anything new."""
    token = site.token()
    assert site.put(token, source, "/cms/hangs/file", "-f")
    assert site.get(token, "/cms/hangs/file", "/dev/null")
    os.kill(site.pid, signal.SIGSTOP)
    try:
        until(
            lambda: not site.get(token, "/cms/hangs/file", "/dev/null", XRD_REQUESTTIMEOUT="3"), "closed", 15
        )
        assert not site.get(token, "/cms/hangs/file", "/dev/null", XRD_REQUESTTIMEOUT="3")
    finally:
        os.kill(site.pid, signal.SIGCONT)
    until(lambda: site.get(token, "/cms/hangs/file", "/dev/null"), "open again", 30)
