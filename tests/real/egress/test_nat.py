"""netd in namespaces: who passes, who does not, and what a change leaves standing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from edged.errors import Conflict, Unavailable
from services.egress.netd import messages
from services.egress.netd.client import NetdClient
from tests.support.netns import NET4, NET6, NODE4, Site, needs_root, site
from tests.support.waiting import until

pytestmark = [pytest.mark.root, needs_root]

BASE = """
[site]
name = "TEST"
[egress]
{top}
[egress.nat]
inside = ["ib0"]
{nat}
[[egress.source]]
name = "nodes"
networks = ["10.77.0.0/24", "fd77::/64"]
{rules}
"""
OPEN = f"""
[[egress.destination]]
name = "world"
networks = ["{NET4}/32", "{NET6}/128"]
ports = ["8000-8001"]
[[egress.rule]]
name = "open"
to = ["world"]
{{rule}}
"""


@dataclass(slots=True)
class Nat:
    """A site whose edge is kept by netd."""

    site: Site
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> NetdClient:
        return NetdClient(self.directory / "netd.sock")

    def write(self, rules: str = "", *, nat: str = "", top: str = "") -> None:
        file = self.directory / "edged.toml"
        file.write_text(BASE.format(rules=rules, nat=nat, top=top))
        file.chmod(0o644)

    def start(self) -> None:
        socket = self.directory / "netd.sock"
        socket.unlink(missing_ok=True)
        self.process = self.site.edge.start(
            sys.executable, "-m", "services.egress.netd", "--config", str(self.directory / "edged.toml"),
            "--socket", str(socket), "--front", "daemon", "--user", "nobody",
            stderr=(self.directory / "netd.log").open("ab"),
        )  # fmt: skip
        until(lambda: _answers(self.client), "netd answers", 30)

    def log(self) -> str:
        file = self.directory / "netd.log"
        return file.read_text() if file.exists() else ""

    def apply(self) -> str:
        return _text(self.client.request(messages.Apply()))

    def get(self, url: str, timeout_s: int = 3) -> tuple[int, str]:
        done = subprocess.run(
            self.site.node.argv(["curl", "-sS", "-m", str(timeout_s), url]), capture_output=True, check=False
        )
        return done.returncode, done.stdout.decode() + done.stderr.decode()


def _answers(client: NetdClient) -> bool:
    try:
        client.request(messages.TakeUsage())
    except Unavailable:
        return False
    finally:
        client.close()
    return True


def _text(parts: list[messages.Answer]) -> str:
    return "".join(part.text for part in parts if isinstance(part, messages.Text))


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that netd's user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="edged-nat-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def nat(directory: Path, tag: str, **options: int) -> Iterator[Nat]:
    counts = directory / "counts"
    counts.mkdir()
    with site(tag, inside_mtu=options.get("inside_mtu", 1500)) as place:
        addresses = [f"{NET4}:8000", f"{NET4}:8001", f"[{NET6}]:8000", f"{NET4}:9"]
        place.internet.start(sys.executable, "-m", "tests.support.internet", str(counts), *addresses)
        until((counts / "ready").exists, "servers", 10)
        yield Nat(place, directory)


@pytest.fixture
def edge(open_path: Path) -> Iterator[Nat]:
    with nat(open_path, "nat") as found:
        yield found


HOOK = "add chain inet {} {} {{ type filter hook {} priority 5; }}"
URL4, URL6 = f"http://{NET4}:8000/", f"http://[{NET6}]:8000/"


def test_only_named_destinations_pass_in_both_families(edge: Nat) -> None:
    edge.write(OPEN.format(rule=""))
    edge.start()
    assert edge.get(URL4) == (0, "hello from 198.51.100.1")
    assert edge.get(URL6) == (0, "hello from 2001:db8:1::1")
    assert edge.get(f"http://{NET4}:9/")[0] == 7, "a reset, not a silence"
    (usage,) = edge.client.request(messages.TakeUsage())
    assert isinstance(usage, messages.Usage)
    four = next(c for c in usage.counted if c.address == NODE4)
    assert (four.rule, four.destination) == ("open", "world")
    assert four.bytes_out > 100 and four.bytes_in > 100
    assert [(r.source, r.destination, r.protocol, r.port) for r in usage.refused] == [(NODE4, NET4, "tcp", 9)]


def test_withdrawn_destination_cuts_established_flows(edge: Nat) -> None:
    edge.write(OPEN.format(rule=""))
    edge.start()
    talk = edge.site.node.start("nc", NET4, "8001", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert talk.stdin is not None and talk.stdout is not None
    talk.stdin.write(b"one\n")
    talk.stdin.flush()
    assert talk.stdout.readline() == b"one\n"
    edge.write("")
    assert "delete" in edge.apply()
    talk.stdin.write(b"two\n")
    talk.stdin.flush()
    assert talk.stdout.readline() == b""
    assert edge.get(URL4)[0] == 7


def test_counters_outlive_a_change_and_a_restart(edge: Nat) -> None:
    edge.write(OPEN.format(rule=""))
    edge.start()
    edge.get(URL4)
    before = _bytes(edge)
    edge.write(OPEN.format(rule="connections = 5"))
    edge.apply()
    assert _bytes(edge) == before > 0
    assert edge.process is not None
    edge.process.kill()
    edge.process.wait(10)
    assert edge.get(URL4)[0] == 0, "the table stands without netd"
    edge.start()
    assert _bytes(edge) > before
    assert _text(edge.client.request(messages.Plan())) == ""


def test_other_tables_stay_byte_by_byte(edge: Nat) -> None:
    rule = "add rule inet others c ip daddr 203.0.113.9 counter drop"
    edge.site.edge.run("nft", f"add table inet others; {HOOK.format('others', 'c', 'forward')}; {rule}")
    before = edge.site.edge.run("nft", "list", "table", "inet", "others")
    edge.write(OPEN.format(rule=""))
    edge.start()
    edge.write(OPEN.format(rule="connections = 5"))
    edge.apply()
    edge.client.request(messages.Off(remove=True))
    assert edge.site.edge.run("nft", "list", "ruleset") == before


def test_off_refuses_and_apply_opens_again(edge: Nat) -> None:
    edge.write(OPEN.format(rule=""))
    edge.start()
    edge.client.request(messages.Off())
    assert edge.get(URL4)[0] == 7
    edge.apply()
    assert edge.get(URL4)[0] == 0


def test_answers_open_named_hosts_only_and_never_the_deny_list(edge: Nat) -> None:
    named = OPEN.replace(f'networks = ["{NET4}/32", "{NET6}/128"]', 'hosts = ["www.example.org"]')
    edge.write(named.format(rule=""))
    edge.start()
    assert edge.get(URL4)[0] == 7
    edge.client.request(messages.Answers("www.example.org", (NET4, "127.0.0.1", "169.254.169.254"), 60))
    assert edge.get(URL4)[0] == 0
    shown = edge.site.edge.run("nft", "list", "set", "inet", "edged", "dns4_world")
    assert NET4 in shown and "127.0.0.1" not in shown and "169.254" not in shown
    with pytest.raises(Conflict):
        edge.client.request(messages.Answers("evil.example.org", (NET4,), 60))


def test_answers_without_end_are_refused(edge: Nat) -> None:
    """A front that was taken over, or a name whose owner gives it another address each time."""
    named = OPEN.replace(f'networks = ["{NET4}/32", "{NET6}/128"]', 'hosts = ["www.example.org"]')
    edge.write(named.format(rule=""))
    edge.start()
    with pytest.raises(Conflict, match="1024"):
        for block in range(20):
            addresses = tuple(f"198.51.{block}.{n}" for n in range(1, 65))
            edge.client.request(messages.Answers("www.example.org", addresses, 60))
    assert block == 16


def test_a_front_does_not_shut_the_administrator_out(edge: Nat) -> None:
    """It opens all the connections it can get, and reads none of its answers."""
    edge.write(OPEN.format(rule=""))
    edge.start()
    program = (
        "import os,socket,sys\n"
        "os.setgid(1); os.setuid(1)\n"
        "held=[]\n"
        "for _ in range(40):\n"
        " s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); held.append(s)\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    path = str(edge.directory / "netd.sock")
    front = edge.site.edge.start(
        sys.executable, "-c", program, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert front.stdin is not None and front.stdout is not None
    assert front.stdout.readline() == b"held\n"
    assert edge.apply() == ""
    front.stdin.close()
    front.wait(10)


def test_limits_hold(edge: Nat) -> None:
    edge.write(OPEN.format(rule="connections = 2"))
    edge.start()
    talks = [
        edge.site.node.start("nc", NET4, "8001", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for talk in talks:
        assert talk.stdin is not None and talk.stdout is not None
        talk.stdin.write(b"x\n")
        talk.stdin.flush()
        assert talk.stdout.readline() == b"x\n"
    assert edge.get(URL4)[0] == 7


def test_quota_stops_a_transfer(edge: Nat) -> None:
    edge.write(OPEN.format(rule='quota = "5M"'))
    edge.start()
    code, _ = edge.get(f"http://{NET4}:8000/big")
    assert code == 28
    assert 4_000_000 < _bytes(edge, "bytes_in") < 7_000_000


def test_jumbo_frames_inside_reach_a_1500_path_without_icmp(open_path: Path) -> None:
    with nat(open_path, "mss", inside_mtu=9000) as edge:
        edge.write(OPEN.format(rule=""))
        edge.start()
        rule = "add rule inet noicmp o icmp type destination-unreachable drop"
        edge.site.edge.run("nft", f"add table inet noicmp; {HOOK.format('noicmp', 'o', 'output')}; {rule}")
        code, _ = edge.get(f"http://{NET4}:8000/big")
        assert code == 0


def test_stranger_and_unknown_message_are_dropped(edge: Nat) -> None:
    edge.write(OPEN.format(rule=""))
    edge.start()
    socket = edge.directory / "netd.sock"
    program = (
        "import socket,sys,os\n"
        "os.setgid(1); os.setuid(int(sys.argv[2]))\n"
        "s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); s.settimeout(5); s.connect(sys.argv[1])\n"
        "try:\n s.send(bytes.fromhex(sys.argv[3])); print(len(s.recv(65536)))\n"
        "except (BrokenPipeError, ConnectionResetError): print(0)\n"
    )

    def said(uid: int, message: bytes) -> str:
        return edge.site.edge.run(sys.executable, "-c", program, str(socket), str(uid), message.hex()).strip()

    front, stranger = 1, 2
    assert int(said(front, messages.encode(messages.TakeUsage()))) > 0
    assert said(front, messages.encode(messages.Apply())) == "0", "only an administrator applies"
    assert said(front, b"\xc1garbage") == "0"
    assert said(front, msgspec.msgpack.encode({"type": "Nft", "text": "flush ruleset"})) == "0"
    assert said(stranger, messages.encode(messages.TakeUsage())) == "0"


def test_a_file_others_can_write_is_refused(edge: Nat) -> None:
    edge.write(OPEN.format(rule=""))
    edge.start()
    os.chown(edge.directory / "edged.toml", 65534, 65534)
    with pytest.raises(Conflict, match="must belong to root"):
        edge.client.request(messages.Apply())


def test_the_front_feeds_names_and_keeps_the_accounts(edge: Nat) -> None:
    named = OPEN.replace(f'networks = ["{NET4}/32", "{NET6}/128"]', 'hosts = ["www.example.org"]')
    top = f'resolvers = ["{NET4}:5353"]\naccounts_s = 0.2'
    edge.write(named.format(rule=""), nat="usage_s = 0.2", top=top)
    file = edge.directory / "edged.toml"
    where = f'[runtime]\nstate = "{edge.directory}"\nrun = "{edge.directory}"\n[observe.services]\n'
    file.write_text(f'{where}egress = "127.0.0.1:0"\n{file.read_text()}')
    edge.site.internet.start(
        sys.executable,
        "-m",
        "tests.support.nameserver",
        NET4,
        "5353",
        json.dumps({"www.example.org": [[NET4]]}),
    )
    edged = [sys.executable, "-m", "edged"]
    subprocess.run([*edged, "state", "migrate", "--config", str(file)], check=True, timeout=30)
    edge.start()
    assert edge.get(URL4)[0] == 7, "nobody asked the DNS yet"
    log = (edge.directory / "front.log").open("ab")
    edge.site.edge.start(*edged, "run", "egress", "--config", str(file), stderr=log)
    until(lambda: edge.get(URL4)[0] == 0, "the name's address is let through", 20)

    def counted() -> list[dict[str, object]]:
        edge.get(URL4)
        argv = [*edged, "egress", "usage", "--by", "source,destination,way", "--json", "--config", str(file)]
        lines = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=30).stdout)
        return [line for line in lines if line["bytes_in"] and line["group"]["way"] == "nat"]

    (line,) = until(counted, "NAT traffic in the ledger", 20)
    assert line["group"] == {"source": "nodes", "destination": "world", "way": "nat"}


V2 = Path("/sys/fs/cgroup/unified" if Path("/sys/fs/cgroup/unified").exists() else "/sys/fs/cgroup")
HOOK_FILE = Path(__file__).parents[3] / "services/egress/node/edged-mark"


@pytest.mark.skipif(not (V2 / "cgroup.procs").exists(), reason="needs cgroup v2")
def test_the_node_hook_marks_a_jobs_packets(edge: Nat) -> None:
    edge.write(OPEN.format(rule=""), nat="job_marks = true")
    edge.start()
    job = f"7{os.getpid()}"
    group = V2 / "system.slice" / "slurmstepd.scope" / f"job_{job}"
    group.mkdir(parents=True)
    inside = ["nsenter", f"--net=/run/netns/{edge.site.node.name}"]  # `ip netns exec` hides /sys/fs/cgroup
    variables = {**os.environ, "SLURM_JOB_ID": job, "SLURM_JOB_USER": "cmsprd"}
    try:
        subprocess.run([*inside, str(HOOK_FILE), "begin"], env=variables, check=True, timeout=20)
        fetch = f"echo $$ > {group}/cgroup.procs; exec curl -sS -m 3 {URL4}"
        subprocess.run([*inside, "sh", "-c", fetch], check=True, timeout=20, capture_output=True)
        assert edge.get(URL4)[0] == 0
        (usage,) = edge.client.request(messages.TakeUsage())
        assert isinstance(usage, messages.Usage)
        marks = {counted.job_mark: counted.bytes_in for counted in usage.counted if counted.address == NODE4}
        assert set(marks) == {0, 1} and all(marks.values())
        subprocess.run([*inside, str(HOOK_FILE), "end"], env=variables, check=True, timeout=20)
        assert "comment" not in edge.site.node.run("nft", "list", "table", "inet", "edged_marks")
    finally:
        subprocess.run([*inside, str(HOOK_FILE), "end"], env=variables, check=False, timeout=20)
        group.rmdir()


def _bytes(edge: Nat, what: str = "bytes_out") -> int:
    (usage,) = edge.client.request(messages.TakeUsage())
    assert isinstance(usage, messages.Usage)
    return sum(getattr(counted, what) for counted in usage.counted)
