"""The servers as systemd keeps them: the units started on a booted machine, killed, and asked over root://.

The machine takes xrootd from this one: both are the same release, and it has no network to fetch packages from.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edged.identity.testissuer import AUDIENCE
from tests.support.edge import Edge, Played, bare, wheelhouse, write_inventory
from tests.support.local_accounts import ATLPRD, CMSPRD
from tests.support.machine import CannotBoot, Machine
from tests.support.waiting import until
from tests.support.xrootd import Done, gate, needs_xrootd

pytestmark = [pytest.mark.root, needs_xrootd, pytest.mark.timeout(900)]  # a machine boots and plays

HOST = "edge.example.org"
ROOTS = {"cms": "/srv/cms", "atlas": "/srv/atlas"}
EDGED = "/opt/edged/current/bin/edged"
CMS, ATLAS, MANAGER = "cms-cmsprd", "atlas-atlprd", "redirector"
PROGRAMS = ("xrootd", "cmsd", "xrdcp", "xrdfs")
PLUGINS = "libXrd*.so*"
PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"
NEEDED = re.compile(r"=> (/\S+)")


@dataclass
class Units:
    """The machine with the units on it."""

    edge: Edge
    wheels: Path

    def play(self, roots: dict[str, str]) -> Played:
        """The roles, with the exports' roots."""
        write_inventory(self.edge, **_site(self.edge, roots))
        return self.edge.play(edged_wheelhouse=str(self.wheels))

    @property
    def machine(self) -> Machine:
        return self.edge.machine

    def token(self, vo: str = "cms") -> str:
        return self.edge.issuer.token(
            aud=AUDIENCE, scope="storage.read:/ storage.modify:/", groups=[f"/{vo}"]
        )

    def client(self, *argv: str, vo: str = "cms") -> Done:
        """A client on the machine itself; it knows the machine by name."""
        environment = ["env", f"BEARER_TOKEN={self.token(vo)}", "X509_CERT_DIR=/etc/grid-security/certificates",
                       "XRD_CONNECTIONWINDOW=2", "XRD_CONNECTIONRETRY=1", "XRD_REQUESTTIMEOUT=10"]  # fmt: skip
        done = self.machine.run(*environment, *argv, check=False)
        return Done(done.returncode, done.stdout + done.stderr)

    def answers(self, vo: str = "cms") -> bool:
        return bool(self.client("xrdfs", f"roots://{HOST}:1094", "stat", f"/{vo}", vo=vo))

    def pid(self, unit: str) -> int:
        return int(self.machine.property(unit, "MainPID"))

    def user(self, unit: str) -> str:
        """Whom its process is."""
        return self.machine.read("stat", "-c", "%U", f"/proc/{self.pid(unit)}")


def _give_xrootd(machine: Machine) -> None:
    """Programs, plugins and the libraries they need, from here."""
    files = {Path(f"/usr/bin/{name}") for name in PROGRAMS}
    files |= set(Path("/usr/lib/x86_64-linux-gnu").glob(PLUGINS))
    told = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False).stdout
    files |= {Path(found) for found in NEEDED.findall(told) if "libc.so" not in found}
    for file in files:
        target = Path(f"/proc/{machine.leader}/root{file}")
        if not target.exists():
            machine.copy(file, str(file))
    for file in gate().parent.iterdir():  # built here: there is no compiler in there
        machine.copy(file, f"/usr/local/lib/edged/{file.name}")
    machine.run("ldconfig")


def _site(edge: Edge, roots: dict[str, str]) -> dict[str, Any]:
    """The inventory's words. Both VOs have one issuer: a token's group tells them apart."""
    vos = {"cms": CMSPRD, "atlas": ATLPRD}
    return {
        "edged_host": HOST,
        "edged_site_create_accounts": False,
        "edged_site_create_roots": False,
        "edged_config": {
            "tls": {"ca_file": "/etc/grid-security/ca.pem"},
            "storage": {"listen": ["0.0.0.0:8443"], "xrootd": {"probe_s": 1.0, "startup_s": 3}},
        },
        "edged_site_vos": {},
        "edged_site_queues": [],
        "edged_site_extra": {
            "issuer": [
                {"url": edge.issuer.url, "audience": [AUDIENCE], "jwks_file": "/etc/edged-jwks.json", "vo": "cms"}
            ],
            "mapping": [
                {"issuer": edge.issuer.url, "groups": [f"/{vo}"], "account": account.name, "vo": vo}
                for vo, account in vos.items()
            ],
            "storage": {"export": [{"prefix": f"/{vo}", "root": roots[vo], "vo": vo} for vo in vos]},
        },
    }  # fmt: skip


def _prepare(edge: Edge) -> None:
    """The machine before edged comes: accounts, their files, the host certificate."""
    machine = edge.machine
    for account in (CMSPRD, ATLPRD):
        machine.run("useradd", "-u", str(account.uid), "-U", "-M", account.name)
    for root, owner in (("cms", CMSPRD), ("atlas", ATLPRD), ("atlas2", ATLPRD)):
        machine.run("install", "-d", "-o", owner.name, "-m", "0750", f"/srv/{root}")
    machine.write("/etc/hosts", f"127.0.0.1 localhost\n{machine.address} {HOST} edge\n")
    machine.run("hostname", HOST)
    host = edge.issuer.ca.host(HOST, machine.address)
    machine.copy(host.certificate, "/etc/grid-security/hostcert.pem")
    machine.copy(host.key, "/etc/grid-security/hostkey.pem")
    machine.copy(edge.issuer.ca.file, "/etc/grid-security/ca.pem")
    machine.copy(edge.issuer.ca.file, "/etc/grid-security/certificates/ca.pem")
    machine.run("openssl", "rehash", "/etc/grid-security/certificates")


def _give_client(machine: Machine) -> None:
    """The probes' client, an extra that no index has as a wheel."""
    client = importlib.util.find_spec("XRootD")
    assert client is not None and client.origin is not None
    here = Path(client.origin).parents[1]
    there = machine.read("readlink", "-f", machine.read("/opt/edged/current/bin/python", "-c", PURELIB))
    for part in (*here.glob("*xrootd*"), here / "XRootD"):
        machine.copy(part, f"{there}/{part.name}")
    machine.run("systemctl", "restart", "edged-xrootd.service")


@pytest.fixture(scope="module")
def units() -> Iterator[Units]:
    with tempfile.TemporaryDirectory(prefix="edged-units-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        try:
            with bare(scratch, "xrd") as edge:
                _give_xrootd(edge.machine)
                _prepare(edge)
                made = Units(edge, wheelhouse())
                made.play(ROOTS)
                _give_client(edge.machine)
                until(lambda: made.answers() and made.answers("atlas"), "both VOs are served", 90, 0.5)
                yield made
        except CannotBoot as why:
            pytest.skip(f"UNPROVEN HERE: the xrootd units were not tried on a booted systemd: {why}")


def test_each_server_is_a_unit_as_its_account(units: Units) -> None:
    for name, user in ((CMS, "cmsprd"), (ATLAS, "atlprd"), (MANAGER, "edged")):
        for program in ("xrootd", "cmsd"):
            unit = f"edged-{program}@{name}.service"
            assert units.machine.property(unit, "ActiveState") == "active"
            assert units.user(unit) == user
            status = units.machine.read("cat", f"/proc/{units.pid(unit)}/status")
            assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    assert units.user("edged-xrootd.service") == "edged-storage"


def test_files_by_both_views(units: Units) -> None:
    units.machine.write("/root/source", b"the same file")
    url = f"roots://{HOST}:1094"
    assert units.client("xrdcp", "-s", "-f", "/root/source", f"{url}//cms/file")
    assert units.client("xrdcp", "-s", "-f", "/root/source", f"{url}//atlas/file", vo="atlas")
    assert units.machine.read("stat", "-c", "%U", "/srv/cms/file", "/srv/atlas/file").split() == [
        "cmsprd",
        "atlprd",
    ]
    assert not units.client("xrdcp", "-s", "-f", "/root/source", f"{url}//atlas/intruder")
    fetched = units.machine.run("python3", "-c", GET, units.token(), check=False)
    assert fetched.stdout == "the same file", fetched.stderr


GET = f"""
import ssl, sys, urllib.request
request = urllib.request.Request("https://{HOST}:8443/cms/file", headers={{"Authorization": "Bearer " + sys.argv[1]}})
context = ssl.create_default_context(cafile="/etc/grid-security/ca.pem")
print(urllib.request.urlopen(request, context=context, timeout=20).read().decode(), end="")
"""


@pytest.mark.parametrize(
    ("name", "program", "other"),
    [
        (CMS, "xrootd", "cmsd"),
        (CMS, "cmsd", "xrootd"),
        (MANAGER, "xrootd", "cmsd"),
        (MANAGER, "cmsd", "xrootd"),
    ],
)
def test_a_killed_server_comes_back_alone(units: Units, name: str, program: str, other: str) -> None:
    """Its pair goes on: restarting that too takes longer, and a server's transfers would end with its cmsd."""
    unit, pair = (f"edged-{one}@{name}.service" for one in (program, other))
    before, beside = units.pid(unit), units.pid(pair)
    units.machine.run("kill", "-KILL", str(before))
    began = time.monotonic()
    until(lambda: units.pid(unit) not in (0, before), "started again", 30, 0.01)
    until(units.answers, "answers", 60, 0.01)
    print(f"{unit}: answers again after {time.monotonic() - began:.1f} s")
    assert units.pid(pair) == beside


def test_a_pair_is_stopped_by_its_name(units: Units) -> None:
    """As systemd/README.md says."""
    pair = [f"edged-{program}@{ATLAS}.service" for program in ("xrootd", "cmsd")]
    units.machine.run("systemctl", "stop", f"edged-*@{ATLAS}.service")
    assert [units.machine.property(unit, "ActiveState") for unit in pair] == ["inactive", "inactive"]
    assert units.answers()
    units.machine.run("systemctl", "start", pair[0])
    until(lambda: all(map(units.pid, pair)), "both run again", 30)


def test_the_doctor_looks_at_every_server(units: Units) -> None:
    until(lambda: units.answers() and units.answers("atlas"), "all is well", 60)
    said = units.machine.run(EDGED, "doctor", check=False).stdout
    for name in (CMS, ATLAS, MANAGER):
        assert re.search(rf"{name} at roots://\S+: make, write, checksum, vector, remove in", said), said


def test_a_change_restarts_only_the_servers_it_changes(units: Units) -> None:
    """Another root for one VO: its server is another one; nobody else's transfers end."""
    every = [
        f"edged-{program}@{name}.service" for name in (CMS, ATLAS, MANAGER) for program in ("xrootd", "cmsd")
    ]
    before = {unit: units.pid(unit) for unit in every}
    front = units.pid("edged-storage.service")
    changed = units.play({**ROOTS, "atlas": "/srv/atlas2"})
    assert changed.changed > 0
    same = {unit for unit in every if units.pid(unit) == before[unit]}
    assert same == {unit for unit in every if ATLAS not in unit}, changed.output[-3000:]
    assert units.pid("edged-storage.service") != front, "our own services take it by a restart"
    until(lambda: units.answers("atlas"), "the changed one serves", 60, 0.5)
    units.machine.write("/root/source", b"elsewhere")
    assert units.client("xrdcp", "-s", "-f", "/root/source", f"roots://{HOST}:1094//atlas/moved", vo="atlas")
    assert units.machine.read("cat", "/srv/atlas2/moved") == "elsewhere"
    assert units.machine.read(EDGED, "xrootd", "list", "--stale") == ""
    after = {unit: units.pid(unit) for unit in every}
    again = units.play({**ROOTS, "atlas": "/srv/atlas2"})
    assert again.changed == 0, again.output[-3000:]
    assert {unit: units.pid(unit) for unit in every} == after


def test_the_servers_stop_and_start_with_the_target(units: Units) -> None:
    every = [
        f"edged-{program}@{name}.service" for name in (CMS, ATLAS, MANAGER) for program in ("xrootd", "cmsd")
    ]
    before = {unit: units.pid(unit) for unit in every}
    assert 0 not in before.values()
    # returns when the target itself is down
    units.machine.run("systemctl", "stop", "edged.target", limit_s=120)

    def states() -> set[str]:
        return {units.machine.property(unit, "ActiveState") for unit in every}

    until(lambda: states() == {"inactive"}, "every server stopped", 60, 0.5)
    assert units.machine.run("pgrep", "-x", "xrootd|cmsd", check=False).stdout == ""
    units.machine.run("systemctl", "start", "edged.target", limit_s=120)
    until(lambda: states() == {"active"}, "every server started", 60, 0.5)
    assert not {units.pid(unit) for unit in every} & {0, *before.values()}
    until(lambda: units.answers() and units.answers("atlas"), "both VOs are served again", 60, 0.5)
