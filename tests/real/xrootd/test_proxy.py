"""The forwarding proxy: a node without a route reads remote files through it, cold and hot.

node 10.77.0.2 -- 10.77.0.1 edge 198.51.100.1 -- 198.51.100.2 internet, which the node cannot reach.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from edged.identity.testca import ThrowAwayCa
from tests.support.local_accounts import PILOT1, ensure
from tests.support.netns import EDGE4, NET4, SITE_NET, Namespace, Site, site
from tests.support.toml import dumps
from tests.support.waiting import until
from tests.support.xrootd import gate, needs_xrootd, scratch

pytestmark = [pytest.mark.root, needs_xrootd]

DATA = os.urandom(1 << 20) * 8
PORT, FAR, PRIVATE = 1098, 1094, 1095

VECTOR = f"""
import sys
from XRootD import client
file = client.File()
status, _ = file.open(sys.argv[1])
assert status.ok, status.message
chunks = [(at, 1000) for at in range(0, {len(DATA)}, 100_000)]
status, answer = file.vector_read(chunks)
assert status.ok, status.message
data = open(sys.argv[2], "rb").read()
assert all(bytes(one.buffer) == data[one.offset:one.offset + one.length] for one in answer.chunks)
print("chunks", len(answer.chunks))
import os; os._exit(0)
"""


@dataclass
class Place:
    """The namespaces, and what runs in them."""

    spaces: Site
    directory: Path
    environment: dict[str, str]

    def node(self, *argv: str, timeout_s: float = 40, **more: str) -> subprocess.CompletedProcess[str]:
        short = {"XRD_CONNECTIONRETRY": "1", "XRD_CONNECTIONWINDOW": "2", "XRD_REQUESTTIMEOUT": "20"}
        short |= {"XRD_STREAMERRORWINDOW": "2", "XRD_STREAMTIMEOUT": "20"}
        return subprocess.run(
            self.spaces.node.argv(argv), capture_output=True, text=True, timeout=timeout_s, check=False,
            env={**os.environ, **short, **self.environment, **more},
        )  # fmt: skip

    def cached(self) -> int:
        """Bytes in the disk cache."""
        return sum(
            file.stat().st_blocks * 512 for file in (self.directory / "cache").rglob("*") if file.is_file()
        )


def _far_server(place: Namespace, directory: Path, port: int) -> None:
    """A plain xrootd of somebody else's, open to all."""
    home = directory / f"far-{port}"
    (home / "data/store").mkdir(parents=True)
    (home / "data/store/file").write_bytes(DATA)
    (home / "data/store/other").write_bytes(b"never cached")
    shutil.chown(home, PILOT1.name, PILOT1.group)
    config = home / "xrootd.cfg"
    config.write_text(
        f"all.adminpath {home}/admin\nall.pidpath {home}/admin\noss.localroot {home}/data\n"
        f"all.export /store\nxrd.port {port}\n"
    )
    argv = [
        "setpriv",
        f"--reuid={PILOT1.uid}",
        f"--regid={PILOT1.uid}",
        "--clear-groups",
        "xrootd",
        "-c",
        str(config),
    ]
    with (home / "log").open("wb") as log:
        place.start(*argv, stdout=log, stderr=log, cwd=home)


def _settings(directory: Path) -> dict[str, object]:
    ca = ThrowAwayCa(directory / "ca")
    host = ca.host("localhost")
    host.key.chmod(0o644)
    (directory / "cache").mkdir()
    shutil.chown(directory / "cache", PILOT1.name, PILOT1.group)
    proxy = {"port": PORT, "cache": str(directory / "cache"), "cache_size": "1G"}
    return {
        "site": {"name": "TEST", "host": "localhost"},
        "runtime": {"state": str(directory / "state"), "run": str(directory / "run"), "user": PILOT1.name},
        "tls": {"certificate": str(host.certificate), "key": str(host.key)},
        "observe": {"listen": "127.0.0.1:0"},
        "accounts": {"mode": "accountd"},
        "storage": {"listen": ["127.0.0.1:0"], "xrootd": {"gate": str(gate()), "proxy": proxy}},
        "egress": {
            "host": EDGE4,
            "source": [{"name": "nodes", "networks": ["10.77.0.0/24"]}],
            "destination": [{"name": "storage", "networks": [f"{NET4}/32"], "ports": [FAR]}],
            "rule": [{"name": "all", "to": ["storage"]}],
        },
    }


@contextmanager
def _no_dns(spaces: Site) -> Iterator[None]:
    """Nobody answers there: let the resolver find that out at once, not after its usual 10 s."""
    places = [Path("/etc/netns") / space.name for space in spaces.everywhere()]
    for directory in places:
        directory.mkdir(parents=True)
        (directory / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    try:
        yield
    finally:
        for directory in places:
            shutil.rmtree(directory)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    ensure()
    with scratch() as directory, site("pfc", forward=False) as spaces, _no_dns(spaces):
        file = directory / "edged.toml"
        file.write_text(dumps(_settings(directory)))
        (directory / "data").write_bytes(DATA)
        _far_server(spaces.internet, directory, FAR)
        with (directory / "log").open("ab") as log:
            daemon = spaces.edge.start(
                sys.executable, "-m", "edged", "run", "--config", str(file), stderr=log
            )
        said = subprocess.run(
            [sys.executable, "-m", "edged", "xrootd", "client-config", "--config", str(file)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        words = [line.removeprefix("export ").partition("=") for line in said.splitlines()]
        found = Place(spaces, directory, {name: value for name, _, value in words})
        until(
            lambda: found.node("nc", "-z", EDGE4, str(PORT)).returncode == 0,
            f"the proxy; {log.name}",
            40,
            0.2,
        )
        yield found
        daemon.terminate()
        daemon.wait(20)


def test_the_node_has_no_way_of_its_own(place: Place) -> None:
    assert place.node("nc", "-z", "-w", "2", NET4, str(FAR)).returncode != 0
    assert place.node("nc", "-z", "-w", "2", EDGE4, str(PORT)).returncode == 0


def test_through_the_proxy_cold_and_hot(place: Place, tmp_path: Path) -> None:
    url = f"root://{NET4}:{FAR}//store/file"
    times = []
    for _ in ("cold", "hot"):
        began = time.monotonic()
        done = place.node("xrdcp", "-s", "-f", url, str(tmp_path / "copy"))
        times.append(time.monotonic() - began)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "copy").read_bytes() == DATA
    until(lambda: place.cached() >= len(DATA), "it is in the disk cache", 15)


def test_vector_reads(place: Place) -> None:
    url = f"root://{EDGE4}:{PORT}//root://{NET4}:{FAR}//store/file"
    done = place.node(
        sys.executable, "-c", VECTOR, url, str(place.directory / "data"), XRD_PLUGIN="", XROOT_PROXY=""
    )
    assert "chunks 84" in done.stdout, done.stderr


@pytest.mark.xfail(
    strict=False,
    reason="KNOWN GAP: once the proxy has been used, the server's own permit list lets other hosts through",
)
def test_only_where_the_policy_lets(place: Place) -> None:
    """The same server by an address that no rule names, and the proxy's own machine.

    Nothing cached: what is whole in the cache is served by its path, whatever host is named.
    """
    for host, may in ((SITE_NET, False), ("127.0.0.1", False), (NET4, True)):
        url = f"root://{EDGE4}:{PORT}//root://{host}:{FAR}//store/other"
        done = place.node("xrdcp", "-s", "-f", url, "/dev/null", XRD_PLUGIN="", XROOT_PROXY="")
        assert (done.returncode == 0) is may, (host, done.stderr)


def test_nothing_is_written_through_it(place: Place) -> None:
    done = place.node("xrdcp", "-s", "-f", str(place.directory / "data"), f"root://{NET4}:{FAR}//store/new")
    assert done.returncode != 0
    assert not (place.directory / f"far-{FAR}/data/store/new").exists()
