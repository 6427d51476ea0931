"""The whole gate as a daemon in a site of namespaces: real clients, and places nobody may be sent to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.netns import EDGE4, EDGE6, NET4, NET6, OUT4, SITE_NET, Site, needs_root, site
from tests.support.waiting import until

pytestmark = [pytest.mark.root, needs_root]

PROXY, RELAY, DNS = f"{EDGE4}:3128", f"{EDGE4}:3306", 5353
CANARY_PORT, OPEN_PORT, FILES_PORT, SSH_PORT = 7777, 8000, 8080, 2222

NAMES = {
    "www.example.org": [[NET4, NET6]],
    "six.example.org": [[NET6]],
    "loop.example.org": [["127.0.0.1"]],
    "mapped.example.org": [["::ffff:127.0.0.1"]],
    "nat64.example.org": [["64:ff9b::7f00:1"]],
    "site.example.org": [[SITE_NET]],
    "metadata.example.org": [["169.254.169.254"]],
    "edge.example.org": [[EDGE4]],
    "mixed.example.org": [["127.0.0.1", NET4]],
    "rebind.example.org": [[NET4], ["127.0.0.1"], ["169.254.169.254"]],
}

CONFIG = f"""
[site]
name = "TEST"
[runtime]
state = "{{directory}}"
run = "{{directory}}"
[observe]
listen = "127.0.0.1:0"
[observe.services]
egress = "127.0.0.1:0"
[egress]
listen = ["{PROXY}", "[{EDGE6}]:3128"]
resolvers = ["{NET4}:{DNS}"]
deny = ["{SITE_NET}/32"]
accounts_s = 0.2
[[egress.source]]
name = "nodes"
networks = ["10.77.0.0/24", "fd77::/64"]
vo = "cms"
[[egress.destination]]
name = "everywhere"
networks = ["0.0.0.0/0", "::/0"]
ports = ["1-65535"]
[[egress.rule]]
name = "all"
to = ["everywhere"]
[[egress.relay]]
name = "database"
listen = ["{RELAY}"]
to = ["www.example.org:{OPEN_PORT}"]
"""


@dataclass(slots=True)
class Gate:
    """The daemon and its surroundings."""

    site: Site
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.directory / "edged.log").open("ab")
        self.process = self.site.edge.start(
            sys.executable,
            "-m",
            "edged",
            "run",
            "egress",
            "--config",
            str(self.directory / "edged.toml"),
            stderr=log,
        )
        until(lambda: "hello" in self.curl("http://www.example.org:8000/")[1], "the gate answers", 20)

    def curl(self, url: str, proxy: str = f"http://{PROXY}", *options: str) -> tuple[int, str]:
        argv = ["curl", "-sS", "-m", "5", "-g", "-x", proxy, *options, url]
        done = subprocess.run(self.site.node.argv(argv), capture_output=True, check=False)
        return done.returncode, (done.stdout + done.stderr).decode()

    def canaries(self) -> int:
        return sum(file.stat().st_size for file in (self.directory / "canaries").glob("*_*"))

    def run(self, *argv: str, **environment: str) -> str:
        """A client on the node, with the variables a job has."""
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy"), f"http://{PROXY}")
        done = subprocess.run(
            self.site.node.argv(argv),
            capture_output=True, text=True, timeout=60, check=False, cwd=self.directory,
            env={**os.environ, **proxies, **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def edged(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [
            sys.executable,
            "-m",
            "edged",
            "egress",
            *words,
            "--config",
            str(self.directory / "edged.toml"),
        ]
        return subprocess.run(
            self.site.edge.argv(argv), capture_output=True, text=True, timeout=30, check=False
        )


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    directory = tmp_path_factory.mktemp("gate")
    with site("gate", forward=False) as place:
        found = Gate(place, directory)
        (directory / "edged.toml").write_text(CONFIG.format(directory=directory))
        _servers(found)
        subprocess.run(
            [sys.executable, "-m", "edged", "state", "migrate", "--config", str(directory / "edged.toml")],
            check=True,
        )
        found.start()
        yield found


def _servers(gate: Gate) -> None:
    """The internet's servers, and canaries wherever nobody may be sent."""
    place, canaries = gate.site, gate.directory / "canaries"
    for name in ("canaries", "outside", "files"):
        (gate.directory / name).mkdir()
    place.edge.run("ip", "address", "add", "169.254.169.254/32", "dev", "lo")
    forbidden = ["127.0.0.1", "[::1]", EDGE4, f"[{EDGE6}]", OUT4, "169.254.169.254"]
    where = [f"{host}:{CANARY_PORT}" for host in forbidden]
    internet = "tests.support.internet"
    place.edge.start(sys.executable, "-m", internet, str(canaries), *where)
    place.internet.start(sys.executable, "-m", internet, str(canaries), f"{SITE_NET}:{CANARY_PORT}")
    outside = [f"{NET4}:{OPEN_PORT}", f"[{NET6}]:{OPEN_PORT}", f"{NET4}:{CANARY_PORT}"]
    place.internet.start(sys.executable, "-m", internet, str(gate.directory / "outside"), *outside)
    place.internet.start(sys.executable, "-m", "tests.support.nameserver", NET4, str(DNS), json.dumps(NAMES))
    place.internet.start(
        sys.executable, "-m", "http.server", "-b", NET4, "-d", str(gate.directory / "files"), str(FILES_PORT),
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    ready = [gate.directory / "outside" / "ready", canaries / "ready"]
    until(lambda: all(file.exists() for file in ready) and len(list(canaries.iterdir())) == 8, "servers", 15)


def test_curl_by_every_protocol_and_family(gate: Gate) -> None:
    for proxy in (f"http://{PROXY}", f"http://[{EDGE6}]:3128", f"socks5h://{PROXY}", f"socks5://{PROXY}"):
        for host in ("www.example.org", NET4, f"[{NET6}]", "six.example.org"):
            if proxy.startswith("socks5:") and host[0].isalpha():
                continue  # that one resolves at the node, which knows no DNS
            url = f"http://{host}:{OPEN_PORT}/"
            assert (
                gate.curl(url, proxy) == (0, f"hello from {OUT4}")
                or "2001:db8:1::1" in gate.curl(url, proxy)[1]
            )
            if proxy.startswith("http"):
                assert gate.curl(url, proxy, "--proxytunnel")[0] == 0


FORBIDDEN = [
    "127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "0", "0.0.0.0", "127.0.0.2", "localhost",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[2002:7f00:0001::1]", "[2001:0:7f00:1:0:0:80ff:fffe]",
    "[fe80::5efe:7f00:1]", "[2001:db8::5efe:127.0.0.1]", "169.254.169.254", "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]", EDGE4, f"[{EDGE6}]", OUT4, f"[::ffff:{OUT4}]", SITE_NET, f"[::ffff:{SITE_NET}]",
    "224.0.0.1", "255.255.255.255", "192.0.0.8", "100.64.0.1", "[fd77::1]", "[ff02::1]",
    "loop.example.org", "LOOP.example.ORG.", "mapped.example.org", "nat64.example.org", "site.example.org",
    "metadata.example.org", "edge.example.org",
]  # fmt: skip


def test_nobody_is_sent_where_nobody_may_go(gate: Gate) -> None:
    before = gate.canaries()
    for host in FORBIDDEN:
        for proxy, options in ((f"http://{PROXY}", ()), (f"http://{PROXY}", ("--proxytunnel",))):
            code, text = gate.curl(f"http://{host}:{CANARY_PORT}/", proxy, *options)
            assert "hello" not in text, host
            assert code == 56 or "edged: " in text or "URL rejected" in text, (host, code, text)
        assert "hello" not in gate.curl(f"http://{host}:{CANARY_PORT}/", f"socks5h://{PROXY}")[1]
    assert gate.canaries() == before == 0


def test_a_resolver_that_changes_its_mind(gate: Gate) -> None:
    """Each connection goes to the very address that was judged; the others of a mixed answer are dropped."""
    answers = [gate.curl(f"http://rebind.example.org:{CANARY_PORT}/")[1] for _ in range(12)]
    answers += [gate.curl(f"http://mixed.example.org:{CANARY_PORT}/")[1] for _ in range(4)]
    assert any("hello" in text for text in answers[:12]), answers
    assert all("hello" in text for text in answers[12:]), answers
    assert gate.canaries() == 0


def test_own_ports_by_any_name(gate: Gate) -> None:
    for host in (EDGE4, f"[{EDGE6}]", f"[::ffff:{EDGE4}]", "edge.example.org"):
        assert "403" in gate.curl(f"http://{host}:3128/", f"http://{PROXY}", "--proxytunnel")[1]


def test_a_relay_needs_no_proxy(gate: Gate) -> None:
    assert "hello" in gate.site.node.run("curl", "-sS", "-m", "5", f"http://{RELAY}/")


def test_git_clones(gate: Gate) -> None:
    work, bare = gate.directory / "work", gate.directory / "files" / "repo.git"
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    (work / "file").write_text("content")
    subprocess.run(["git", "-C", str(work), "add", "file"], check=True)
    subprocess.run(["git", "-C", str(work), *identity, "commit", "-qm", "one"], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], check=True)
    gate.run("git", "clone", "-q", f"http://www.example.org:{FILES_PORT}/repo.git", "cloned")
    assert (gate.directory / "cloned" / "file").read_text() == "content"


def test_pip_downloads(gate: Gate) -> None:
    shelf = gate.directory / "files" / "simple" / "tiny"
    shelf.mkdir(parents=True)
    wheel = shelf / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    (shelf / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    gate.run(
        "python3", "-m", "pip", "download", "-q", "--no-deps", "-d", "got",
        "--trusted-host", "www.example.org",
        "--index-url", f"http://www.example.org:{FILES_PORT}/simple", "tiny", PIP_CONFIG_FILE="/dev/null",
    )  # fmt: skip
    assert (gate.directory / "got" / wheel.name).exists()


def test_wget_fetches(gate: Gate) -> None:
    (gate.directory / "files" / "page").write_text("a page")
    assert gate.run("wget", "-qO-", f"http://www.example.org:{FILES_PORT}/page") == "a page"


def test_ssh_goes_through_connect(gate: Gate) -> None:
    key, host_key = gate.directory / "id", gate.directory / "host"
    for file in (key, host_key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    (gate.directory / "authorized").write_text(key.with_suffix(".pub").read_text())
    Path("/run/sshd").mkdir(exist_ok=True)
    gate.site.internet.start(
        "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", str(SSH_PORT), "-h", str(host_key),
        "-o", f"AuthorizedKeysFile={gate.directory / 'authorized'}", "-o", "StrictModes=no",
        "-o", "UsePAM=no", "-o", "PidFile=none", stderr=subprocess.DEVNULL,
    )  # fmt: skip
    argv = gate.site.internet.argv(["nc", "-z", NET4, str(SSH_PORT)])
    until(lambda: subprocess.run(argv, check=False).returncode == 0, "sshd", 10)
    said = gate.run(
        "ssh", "-F", "none", "-i", str(key), "-o", "StrictHostKeyChecking=no",
        "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes",
        "-o", f"ProxyCommand=nc -X connect -x {PROXY} %h %p", "-p", str(SSH_PORT),
        f"root@{NET4}", "echo through",
    )  # fmt: skip
    assert said.strip() == "through"


def test_explain_and_usage_tell_the_same_story(gate: Gate) -> None:
    done = gate.edged("explain", "--from", "10.77.0.2", "--to", f"www.example.org:{OPEN_PORT}")
    assert done.returncode == 0 and "rule 1 'all': allow 'everywhere'" in done.stdout, (
        done.stdout + done.stderr
    )
    done = gate.edged("explain", "--from", "10.77.0.2", "--to", "metadata.example.org:80")
    assert done.returncode == 1 and "guard: address is refused: link-local" in done.stdout
    assert gate.edged("explain", "--from", "192.0.2.1", "--to", "a.example.org:80").returncode == 1

    def lines() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(
            gate.edged("usage", "--by", "vo,destination,way", "--json").stdout
        )
        return found

    gate.curl("http://www.example.org:8000/", f"http://{PROXY}", "--proxytunnel")
    line = until(lambda: next((x for x in lines() if x["connections"]), None), "usage", 10)
    assert line is not None and line["group"] == {"vo": "cms", "destination": "everywhere", "way": "proxy"}


TALKER = """
import socket, sys
s = socket.create_connection((sys.argv[1], 3128), 5)
s.sendall(f"CONNECT {sys.argv[2]} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\nping".encode())
got = b""
while not got.endswith(b"ping"):
    got += s.recv(100)
print("open", flush=True)
s.settimeout(30)
try:
    print("end" if s.recv(100) == b"" else "bytes")
except ConnectionResetError:
    print("end")
"""


def test_kill_9_with_tunnels_open(gate: Gate) -> None:
    talk = gate.site.node.start(
        sys.executable, "-c", TALKER, EDGE4, f"{NET4}:{OPEN_PORT}", stdout=subprocess.PIPE
    )
    assert talk.stdout is not None and gate.process is not None
    assert talk.stdout.readline() == b"open\n"
    until(lambda: "cms" in gate.edged("usage").stdout, "accounts written", 10)
    gate.process.kill()
    gate.process.wait(10)
    assert talk.stdout.readline() == b"end\n", "the client is told"
    gate.start()
    assert "cms" in gate.edged("usage").stdout
