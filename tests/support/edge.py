"""An edge as a site has it: the roles applied to a booted machine, reached over its network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.client import ApiClient, connected
from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import AUDIENCE, ThrowAwayIssuer
from tests.support import rootfs
from tests.support.machine import Machine, booted
from tests.support.origin import Origin

TREE = Path(__file__).parents[2]
PLUGINS = TREE / "tests/real/operate/plugins/connection"
ANSIBLE_S = 600.0
SCOPES = "compute.read compute.create compute.modify compute.cancel storage.read:/ storage.modify:/"
PORTS = {
    **{"identity": 8443, "jobs": 8444, "portal": 8445, "storage": 8446, "interlink": 8447},
    **{"cache": 3128, "egress": 3129, "egress-api": 3130},
}
UNITS = (
    *("identity", "issuers", "identity-api", "accountd", "jobs", "storage", "cache", "egress", "netd"),
    "portal",
)
PORTAL_TOKEN = "an-admin-token-of-more-than-32-characters"
RECAP = re.compile(r"^\S+\s*:.*?\bok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.M)


@dataclass(frozen=True, slots=True)
class Played:
    """One run of ansible-playbook."""

    ok: int
    changed: int
    seconds: float
    output: str


def play(files: Path, *words: str, playbook: str = "site.yml", fails: bool = False, **values: Any) -> Played:
    """Run a playbook with the inventory ``hosts.json`` in ``files``. ``values`` go before the inventory's.

    Raises AssertionError.
    """
    environment = {
        **os.environ,
        "ANSIBLE_CONNECTION_PLUGINS": str(PLUGINS),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_NOCOWS": "1",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_HOME": str(files / "ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "0",
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(files / "hosts.json")]
    command += [str(TREE / "ansible" / playbook), "--extra-vars", json.dumps(values), *words]
    started = time.monotonic()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=ANSIBLE_S, check=False
    )
    output = done.stdout + done.stderr
    found = RECAP.search(output)
    if fails != (done.returncode != 0) or found is None:
        raise AssertionError(f"ansible-playbook ended {done.returncode}\n{output[-6000:]}")
    return Played(int(found[1]), int(found[2]), time.monotonic() - started, output)


def reached(machine: Machine) -> dict[str, Any]:
    """How Ansible gets into a machine of the tests."""
    return {
        "ansible_connection": "machine",
        "ansible_machine_leader": str(machine.leader),
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_become": False,  # we are root there, and there is no sudo
    }


@dataclass(slots=True)
class Edge:
    """The machine, who signs tokens for it, and where its files for Ansible are."""

    machine: Machine
    issuer: ThrowAwayIssuer
    origin: Origin
    files: Path
    first: Played | None = None  # the play that set it up

    def play(self, *words: str, playbook: str = "site.yml", fails: bool = False, **values: Any) -> Played:
        """Run a playbook over the machine, see ``play``."""
        return play(self.files, *words, playbook=playbook, fails=fails, **values)

    def token(self, **claims: Any) -> str:
        """A token of a production user."""
        return self.issuer.token(aud=AUDIENCE, scope=SCOPES, groups=["/cms/production"], **claims)

    def url(self, service: str) -> str:
        """Where a service is, from outside."""
        return f"https://{self.machine.address}:{PORTS[service]}"

    @contextmanager
    def settings(self, **changes: Any) -> Iterator[None]:
        """Another inventory while entered."""
        before = (self.files / "hosts.json").read_text()
        try:
            write_inventory(self, **changes)
            yield
        finally:
            (self.files / "hosts.json").write_text(before)

    def api(self, service: str) -> Any:
        """A client of one service's API, as ``async with``."""
        return connected(self.url(service), self.issuer.ca.file, self.token())

    def wait(self, unit: str) -> None:
        """Until the unit is up."""
        deadline = time.monotonic() + 30
        while self.machine.run("systemctl", "is-active", unit, check=False).stdout.strip() != "active":
            if time.monotonic() > deadline:
                raise AssertionError(f"{unit} does not come up:\n{self.machine.journal(unit)}")


def wheelhouse() -> Path:
    """The archive of wheels for this tree; the locked ones are kept between runs."""
    target = Path(tempfile.mkdtemp(prefix="edged-wheels-"))
    command = [str(TREE / ".ci/wheelhouse"), str(Path(sys.executable).parents[1]), str(target)]
    kept = str(rootfs.cache_directory() / "wheels")
    # a tree whose lock is behind can still be tried; what is released cannot be made from it
    environment = {**os.environ, "EDGED_WHEELS": kept, "EDGED_UNLOCKED": "1"}
    with rootfs.one_builder("wheels"):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
    if done.returncode != 0:
        raise AssertionError(f"no wheelhouse:\n{done.stderr[-3000:]}")
    return Path(done.stdout.strip().splitlines()[-1])


@contextmanager
def bare(scratch: Path, name: str = "edge") -> Iterator[Edge]:
    """A booted machine with what a site has before edged comes: a certificate, a directory of data."""
    with ExitStack() as stack:
        machine = stack.enter_context(
            booted(f"{name}{os.getpid()}", scratch / "machine", capabilities=("CAP_NET_ADMIN",))
        )
        origin = stack.enter_context(Origin.running(machine.outside))
        issuer = ThrowAwayIssuer(ThrowAwayCa(scratch / "ca"))
        files = scratch / "play"
        files.mkdir()
        edge = Edge(machine, issuer, origin, files)
        host = issuer.ca.host(machine.address, "edge")
        machine.copy(host.certificate, "/etc/grid-security/hostcert.pem")
        machine.copy(host.key, "/etc/grid-security/hostkey.pem")
        machine.run("chmod", "600", "/etc/grid-security/hostkey.pem")
        machine.write("/etc/edged-jwks.json", json.dumps(issuer.jwks()))
        machine.write("/etc/edged-portal.token", PORTAL_TOKEN, 0o600)
        write_inventory(edge)
        yield edge


def write_inventory(edge: Edge, **changes: Any) -> None:
    """What the site's people wrote, as one host's variables."""
    host = {
        **reached(edge.machine),
        "edged_manage_packages": False,  # the root file system has them, and there is no way out
        "edged_host": edge.machine.address,
        "edged_site_name": "TEST-SITE",
        "edged_site_create_accounts": True,
        "edged_site_create_roots": True,
        "edged_config": _config(edge),
        "edged_site_vos": _vos(edge.issuer),
        "edged_site_queues": [{"name": "short", "max_walltime_s": 600, "default_walltime_s": 60}],
        **changes,
    }
    inventory = {"edged": {"hosts": {"edge": host}}}
    (edge.files / "hosts.json").write_text(json.dumps(inventory, indent=1))


def _vos(issuer: ThrowAwayIssuer) -> dict[str, Any]:
    return {
        "cms": {
            "issuers": [{"url": issuer.url, "jwks_file": "/etc/edged-jwks.json"}],
            "audience": [AUDIENCE],
            "mappings": [{"groups": ["/cms/production"], "account": "cmsprd", "class": "production"}],
            "exports": [
                {"prefix": "/cms", "root": "/srv/cms"},
                {"prefix": "/cms-scratch", "root": "/pfs/scratch/cms"},
            ],
        }
    }


def _config(edge: Edge) -> Mapping[str, Any]:
    every = "0.0.0.0"
    origin = f"{edge.machine.outside}/32"
    return {
        "identity": {"listen": [f"{every}:{PORTS['identity']}"], "admins": ["/site/admins"]},
        "jobs": {
            "listen": [f"{every}:{PORTS['jobs']}"],
            "batch": "local",
            "poll_s": 0.5,
            "interlink": {
                "listen": [f"{every}:{PORTS['interlink']}"],
                "runtime": {"kind": "none", "images": ["docker.io/library/"]},
            },
        },
        "storage": {"listen": [f"{every}:{PORTS['storage']}"]},
        "portal": {
            "listen": [f"{every}:{PORTS['portal']}"],
            "admin_token_file": "/etc/edged-portal.token",
            "refresh_s": 1,
        },
        "cache": {
            "listen": [f"{every}:{PORTS['cache']}"],
            "disk": "200M",
            "disk_free": "10M",
            "destination": [{"name": "origin", "hosts": [edge.origin.authority]}],
        },
        "egress": {
            "listen": [f"{every}:{PORTS['egress']}"],
            "api": {"listen": [f"{every}:{PORTS['egress-api']}"]},
            "inside": [origin],
            "source": [{"name": "nodes", "networks": ["10.0.0.0/8"], "vo": "cms"}],
            "destination": [{"name": "origin", "networks": [origin], "ports": [edge.origin.port]}],
            "rule": [{"name": "cms-out", "to": ["origin"]}],
            "nat": {"inside": ["nodes0"]},
        },
    }


__all__ = ["PORTS", "UNITS", "ApiClient", "Edge", "Played", "bare", "play", "reached", "wheelhouse"]
