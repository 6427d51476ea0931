"""The forwarding proxy: a node without a route reads remote files through it, cold and hot, and reaches nothing else.

node 10.77.0.2 -- 10.77.0.1 edge 198.51.100.1 -- 198.51.100.2 internet, which the node cannot reach. Out there
are servers that rules name, places that no rule names, and servers that send their clients to those.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
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
from tests.support.netns import EDGE4, NET4, NODE4, SITE_NET, Namespace, Site, site
from tests.support.toml import dumps
from tests.support.waiting import until
from tests.support.xrootd import gate, needs_xrootd, scratch

pytestmark = [pytest.mark.root, needs_xrootd]

DATA, OTHER_DATA = os.urandom(1 << 20) * 8, os.urandom(1 << 20)
PORT, FAR, OTHER = 1098, 1094, 1096  # the proxy; two far servers
MOVES, LIAR, LIAR_WITH_NAMES = 1097, 1099, 1100  # far servers that send their clients elsewhere
SECRET_PORT = 1200  # no rule names it
UNNAMED = "198.51.100.3"  # the internet too, but no rule names it
POOR = "10.77.0.3"  # a node that may go to one place only
SECRET = b"this is nobody's business"
METALINK = f"""<?xml version="1.0"?>
<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="other">
<url priority="1">root://{UNNAMED}:{FAR}//store/other</url></file></metalink>
"""
ZONES = {
    "far.example.org": [[NET4]],
    "inside.example.org": [[SITE_NET]],
    "mapped.example.org": [[f"::ffff:{SITE_NET}"]],
    "itself.example.org": [[EDGE4], ["127.0.0.1"]],
    "rebound.example.org": [[NET4], [SITE_NET]],
    "unnamed.example.net": [[UNNAMED]],
    "also.example.net": [[NET4]],
}

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


WATCH = f"""
table inet watch {{
  chain input {{
    type filter hook input priority 0;
    iifname "wan" tcp flags syn / syn,ack ip daddr {{ {UNNAMED}, {SITE_NET} }} counter
    iifname "wan" tcp dport {SECRET_PORT} counter
  }}
}}
"""


@dataclass
class Got:
    """What a client came back with."""

    code: int
    data: bytes
    said: str


@dataclass
class Place:
    """The namespaces, and what runs in them."""

    spaces: Site
    directory: Path
    environment: dict[str, str]
    daemon: subprocess.Popen[bytes]

    def node(self, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
        short = {"XRD_CONNECTIONRETRY": "1", "XRD_CONNECTIONWINDOW": "2", "XRD_REQUESTTIMEOUT": "20"}
        short |= {"XRD_STREAMERRORWINDOW": "2", "XRD_STREAMTIMEOUT": "20"}
        return subprocess.run(
            self.spaces.node.argv(argv), capture_output=True, text=True, timeout=40, check=False,
            env={**os.environ, **short, **self.environment, **more},
        )  # fmt: skip

    def listing(self, host: str) -> subprocess.CompletedProcess[str]:
        """A look at a remote directory."""
        return self.node(
            "xrdfs", f"root://{EDGE4}:{PORT}", "ls", f"/root://{host}//store", XRD_PLUGIN="", XROOT_PROXY=""
        )

    def as_poor(self, url: str) -> subprocess.CompletedProcess[str]:
        """A copy by the node that may do less."""
        net = f"{POOR.rpartition('.')[0]}.0/24"
        try:
            self.spaces.node.run("ip", "route", "replace", net, "dev", "ib0", "src", POOR)
            return self.node("xrdcp", "-s", "-f", url, "/dev/null", XRD_PLUGIN="", XROOT_PROXY="")
        finally:
            self.spaces.node.run("ip", "route", "replace", net, "dev", "ib0", "src", NODE4)

    def knocks(self) -> int:
        """Connections that arrived where nobody may go."""
        said = self.spaces.internet.run("nft", "list", "chain", "inet", "watch", "input")
        return sum(map(int, re.findall(r"counter packets (\d+)", said)))

    @contextmanager
    def front_stopped(self) -> Iterator[None]:
        """Nobody judges meanwhile."""
        self.daemon.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.daemon.send_signal(signal.SIGCONT)

    def cached(self) -> int:
        """Bytes in the disk cache."""
        return sum(
            file.stat().st_blocks * 512 for file in (self.directory / "cache").rglob("*") if file.is_file()
        )


def _far_server(place: Namespace, directory: Path, port: int, data: bytes, *more: str) -> None:
    """A plain xrootd of somebody else's, open to all."""
    home = directory / f"far-{port}"
    (home / "data/store").mkdir(parents=True)
    (home / "data/store/file").write_bytes(data)
    (home / "data/store/other").write_bytes(b"never cached")
    (home / "data/store/places.meta4").write_text(METALINK)
    shutil.chown(home, PILOT1.name, PILOT1.group)
    config = home / "xrootd.cfg"
    config.write_text(
        f"all.adminpath {home}/admin\nall.pidpath {home}/admin\noss.localroot {home}/data\n"
        f"all.export /\nxrd.port {port}\n" + "".join(f"{line}\n" for line in more)
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


def _internet(spaces: Site, directory: Path) -> None:
    """Everything outside, good and bad."""
    internet = spaces.internet
    internet.run("ip", "address", "add", f"{UNNAMED}/24", "dev", "wan")
    (directory / "watch.nft").write_text(WATCH)
    internet.run("nft", "-f", str(directory / "watch.nft"))
    _far_server(internet, directory, FAR, DATA)
    _far_server(internet, directory, OTHER, OTHER_DATA)
    moves = (f"xrootd.redirect {NET4}:{FAR} /store", f"xrootd.redirect {UNNAMED}:{FAR} /unnamed",
             f"xrootd.redirect {SITE_NET}:{FAR} /inside", f"xrootd.redirect {EDGE4}:9 /edge")  # fmt: skip
    _far_server(internet, directory, MOVES, b"", *moves)
    secret = directory / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o644)
    _far_server(internet, directory, SECRET_PORT, SECRET)
    python = (sys.executable, "-m", "tests.support.xrootd_liar")
    internet.start(*python, str(LIAR), f"file://localhost{secret}", "0")
    internet.start(*python, str(LIAR_WITH_NAMES), "unnamed.example.net", str(FAR))


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
            "resolvers": ["127.0.0.1"],
            "source": [
                {"name": "nodes", "networks": [f"{NODE4}/32"]},
                {"name": "poor", "networks": [f"{POOR}/32"]},
            ],
            "destination": [
                {"name": "storage", "networks": [f"{NET4}/32"], "ports": [f"{FAR}-{LIAR_WITH_NAMES}"]},
                {"name": "names", "hosts": ["*.example.org"], "ports": [f"{FAR}-{LIAR_WITH_NAMES}"]},
                {"name": "one", "networks": [f"{NET4}/32"], "ports": [OTHER]},
            ],
            "rule": [
                {"name": "little", "to": ["one"], "sources": ["poor"]},
                {"name": "all", "to": ["storage", "names"], "sources": ["nodes"]},
            ],
        },
    }


@contextmanager
def _names(spaces: Site) -> Iterator[None]:
    """The world's names, told in the edge; nobody answers elsewhere: let a resolver find that out at once."""
    places = [Path("/etc/netns") / space.name for space in spaces.everywhere()]
    for directory in places:
        directory.mkdir(parents=True)
        (directory / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    try:
        spaces.edge.start(
            sys.executable, "-m", "tests.support.nameserver", "127.0.0.1", "53", json.dumps(ZONES)
        )
        yield
    finally:
        for directory in places:
            shutil.rmtree(directory)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    ensure()
    with scratch() as directory, site("pfc", forward=False) as spaces, _names(spaces):
        file = directory / "edged.toml"
        file.write_text(dumps(_settings(directory)))
        (directory / "data").write_bytes(DATA)
        spaces.node.run("ip", "address", "add", f"{POOR}/24", "dev", "ib0")
        _internet(spaces, directory)
        with (directory / "log").open("ab") as log:
            daemon = spaces.edge.start(
                sys.executable, "-m", "edged", "run", "--config", str(file), stderr=log,
                env={**os.environ, "XRD_CONNECTIONWINDOW": "2", "XRD_CONNECTIONRETRY": "1"},
            )  # fmt: skip
        said = subprocess.run(
            [sys.executable, "-m", "edged", "xrootd", "client-config", "--config", str(file)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        words = [line.removeprefix("export ").partition("=") for line in said.splitlines()]
        found = Place(spaces, directory, {name: value for name, _, value in words}, daemon)
        try:
            until(lambda: found.node("nc", "-z", EDGE4, str(PORT)).returncode == 0, "the proxy", 40, 0.2)
        except TimeoutError:
            raise RuntimeError((directory / "log").read_text()[-4000:]) from None
        yield found
        assert "server ended" not in (directory / "log").read_text(), "something made the proxy end"
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
    assert "/store/file" in place.listing(f"{NET4}:{FAR}").stdout


def test_vector_reads(place: Place) -> None:
    url = f"root://{EDGE4}:{PORT}//root://{NET4}:{FAR}//store/file"
    done = place.node(
        sys.executable, "-c", VECTOR, url, str(place.directory / "data"), XRD_PLUGIN="", XROOT_PROXY=""
    )
    assert "chunks 84" in done.stdout, done.stderr


ALLOWED = [
    (f"{NET4}:{FAR}", b"never cached"),
    (f"far.example.org:{FAR}", b"never cached"),
    ("far.example.org", b"never cached"),
    (f"FAR.Example.ORG:{FAR}", b"never cached"),
    (f"[::ffff:{NET4}]:{FAR}", b"never cached"),  # the same address
]
FORBIDDEN = {
    "the site's own net": f"{SITE_NET}:{FAR}",
    "mapped into IPv6": f"[::ffff:{SITE_NET}]:{FAR}",
    "the proxy's machine": f"127.0.0.1:{FAR}",
    "its address": f"{EDGE4}:{FAR}",
    "the proxy itself": f"{EDGE4}:{PORT}",
    "loopback, IPv6": f"[::1]:{FAR}",
    "an unnamed address": f"{UNNAMED}:{FAR}",
    "an unnamed name": f"unnamed.example.net:{FAR}",
    "an unnamed name of a named address, other port": f"also.example.net:{SECRET_PORT}",
    "another port": f"{NET4}:{SECRET_PORT}",
    "another port of a name": f"far.example.org:{SECRET_PORT}",
    "a name that leads inside": f"inside.example.org:{FAR}",
    "a name that leads inside, mapped": f"mapped.example.org:{FAR}",
    "a name that leads back": f"itself.example.org:{FAR}",
    "a number": f"3325256706:{FAR}",  # 198.51.100.2
    "a number in base sixteen": f"0xc6336402:{FAR}",
    "a short address": f"198.51.25602:{FAR}",
    "octal": f"0306.063.0144.02:{FAR}",
    "no port": f"{NET4}:0",
    "a port beyond": f"{NET4}:{FAR + 65536}",
    "two ports": f"{NET4}:{FAR}:{FAR}",
    "a login": f"user@{NET4}:{FAR}",
    "a login and its password": f"user:password@{NET4}:{FAR}",
    "a login that looks like the host": f"{NET4}:{FAR}@{UNNAMED}:{FAR}",
    "nothing": "",
    "a long name": "x" * 60 + ".y" * 140 + ".example.org",
}


def direct(place: Place, host: str, path: str = "/store/other", **more: str) -> Got:
    """What a node gets by naming the proxy itself."""
    target = place.directory / "got"
    target.unlink(missing_ok=True)
    url = f"root://{EDGE4}:{PORT}//root://{host}/{path}"
    done = place.node("xrdcp", "-s", "-f", url, str(target), XRD_PLUGIN="", XROOT_PROXY="", **more)
    return Got(done.returncode, target.read_bytes() if target.exists() else b"", done.stderr)


@pytest.mark.parametrize(("host", "data"), ALLOWED, ids=[host for host, _ in ALLOWED])
def test_where_the_policy_lets(place: Place, host: str, data: bytes) -> None:
    got = direct(place, host)
    assert (got.code, got.data) == (0, data), got


@pytest.mark.parametrize("host", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_only_where_the_policy_lets(place: Place, host: str) -> None:
    """Also right after the proxy has served something: its own list would then open that once more."""
    for path in ("/store/file", "/store/other"):
        assert direct(place, f"{NET4}:{FAR}", path).code == 0
        got = direct(place, host, path)
        assert got.code != 0 and not got.data, got
        assert place.listing(host).returncode != 0
    assert place.knocks() == 0, "it was not even tried"


def test_a_name_that_changes_its_mind(place: Place) -> None:
    """DNS rebinding: whichever answer comes when, nothing is fetched from inside."""
    for _ in range(6):
        got = direct(place, f"rebound.example.org:{FAR}")
        assert got.data in (b"", b"never cached"), got
    assert place.knocks() == 0


REDIRECTS = {"unnamed": UNNAMED, "inside": SITE_NET, "edge": EDGE4}


@pytest.mark.parametrize("path", REDIRECTS)
def test_redirects_lead_nowhere_else(place: Place, path: str) -> None:
    """A far server that the policy names sends its clients to a place that it does not."""
    assert direct(place, f"{NET4}:{MOVES}", "/store/other").data == b"never cached", (
        "an allowed one is followed"
    )
    got = direct(place, f"{NET4}:{MOVES}", f"/{path}/other")
    assert got.code != 0 and not got.data, got
    assert place.knocks() == 0


def test_a_redirect_to_a_name(place: Place) -> None:
    got = direct(place, f"{NET4}:{LIAR_WITH_NAMES}", "/store/other")
    assert got.code != 0 and not got.data, got
    assert place.knocks() == 0


def test_a_far_server_opens_no_local_file(place: Place) -> None:
    """A redirect to file://localhost would be followed by the client inside the proxy."""
    got = direct(place, f"{NET4}:{LIAR}", "/store/other")
    assert got.code != 0 and SECRET not in got.data, got


def test_lists_of_places_are_files(place: Place) -> None:
    """A .meta4 file is copied as it is, not followed by the proxy."""
    got = direct(place, f"{NET4}:{FAR}", "/store/places.meta4", XRD_METALINKPROCESSING="0")
    assert got.data == METALINK.encode(), got


def test_a_proxy_asked_for_another(place: Place) -> None:
    """root://proxy//root://allowed//root://forbidden//: the allowed one is asked, for a file of that name."""
    got = direct(place, f"{NET4}:{FAR}", f"/root://{UNNAMED}:{FAR}//store/other")
    assert got.code != 0 and not got.data, got


def test_tokens_do_not_reach_the_shared_cache(place: Place) -> None:
    for words in ("authz=Bearer%20abc", "x=1&authz=abc", "access_token=abc"):
        got = direct(place, f"{NET4}:{FAR}", f"/store/other?{words}")
        assert got.code != 0 and not got.data, got


def test_two_hosts_files_are_two(place: Place) -> None:
    """The cache knows hosts: the same path is another file elsewhere, cold and hot."""
    for _ in range(2):
        assert direct(place, f"{NET4}:{FAR}", "/store/file").data == DATA
        assert direct(place, f"{NET4}:{OTHER}", "/store/file").data == OTHER_DATA


def test_what_is_cached_is_judged_too(place: Place) -> None:
    """Another node may only go elsewhere: it does not get what the first one fetched."""
    assert direct(place, f"{NET4}:{FAR}", "/store/file").data == DATA
    got = place.as_poor(f"root://{EDGE4}:{PORT}//root://{NET4}:{FAR}//store/file")
    assert got.returncode != 0
    got = place.as_poor(f"root://{EDGE4}:{PORT}//root://{NET4}:{OTHER}//store/file")
    assert got.returncode == 0, got.stderr


def test_without_edged_nothing_opens(place: Place) -> None:
    """Closed by default: the front that judges does not answer."""
    assert direct(place, f"{NET4}:{FAR}").code == 0
    with place.front_stopped():
        assert direct(place, f"{NET4}:{FAR}").code != 0
    until(lambda: direct(place, f"{NET4}:{FAR}").code == 0, "again", 20)


def test_nothing_is_written_through_it(place: Place) -> None:
    done = place.node("xrdcp", "-s", "-f", str(place.directory / "data"), f"root://{NET4}:{FAR}//store/new")
    assert done.returncode != 0
    assert not (place.directory / f"far-{FAR}/data/store/new").exists()
