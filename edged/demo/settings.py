"""The demo's configuration file, as a site would write it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from edged.identity.testissuer import ThrowAwayIssuer

AUDIENCE = "https://edge.example.org"
SCOPES = (
    "compute.read",
    "compute.create",
    "compute.modify",
    "compute.cancel",
    "storage.read:/",
    "storage.modify:/",
)


@dataclass(slots=True)
class Scene:
    """Where the demo plays. ``ca_file`` signed the host certificate and the issuer's."""

    scratch: Path
    issuer: ThrowAwayIssuer
    account: str
    batch: str
    sections: list[str] = field(default_factory=list)

    @property
    def ca_file(self) -> Path:
        """The throw-away CA."""
        return self.issuer.ca.file

    def token(self, *scopes: str, **claims: object) -> str:
        """A token of the demo's issuer; without scopes, everything the demo does."""
        own = {"sub": "operator", "aud": AUDIENCE, "scope": " ".join(scopes or SCOPES)}
        told: dict[str, Any] = {**own, "wlcg.groups": ["/demo"], **claims}
        return self.issuer.token(**told)


def settings(scene: Scene) -> str:
    """TOML. Services add their own sections by entry point group ``edged.demo_settings``."""
    host = scene.issuer.ca.host("127.0.0.1", "localhost")
    base = scene.scratch
    parts = [
        f"""
[site]
name = "DEMO-SITE"
host = "localhost"

[runtime]
state = "{base}/state"
run = "{base}/run"
stop_deadline_s = 5

[tls]
certificate = "{host.certificate}"
key = "{host.key}"
ca_file = "{scene.ca_file}"

[observe]
listen = "127.0.0.1:0"

[accounts]
mode = "self"

[identity]
listen = ["127.0.0.1:0"]

[[issuer]]
url = "{scene.issuer.url}"
audience = ["{AUDIENCE}"]
vo = "demo"
ca_file = "{scene.ca_file}"

[[mapping]]
issuer = "{scene.issuer.url}"
groups = ["/demo"]
account = "{scene.account}"
class = "production"

[jobs]
listen = ["127.0.0.1:0"]
batch = "{scene.batch}"
sessions = "{base}/sessions"
poll_s = 0.5
{_slurm_conf()}
{_queues(scene)}
"""
    ]
    parts += [point.load()(scene) for point in sorted(entry_points(group="edged.demo_settings"))]
    return "\n".join(parts)


def _slurm_conf() -> str:
    """The Slurm configuration this shell uses, when it is not the default one."""
    found = os.environ.get("SLURM_CONF", "")
    return f'slurm_conf = "{found}"' if found else ""


def _queues(scene: Scene) -> str:
    if scene.batch == "slurm":
        return _slurm_queues()
    return '[[jobs.queue]]\nname = "short"\nmax_walltime_s = 600\ndefault_walltime_s = 60\n'


def _slurm_queues() -> str:
    """A queue for every partition this machine's sinfo tells, with its GPU kinds."""
    told = subprocess.run(
        ["sinfo", "--noheader", "--format=%R|%G"], capture_output=True, text=True, timeout=15, check=True
    )
    kinds: dict[str, set[str]] = {}
    for line in told.stdout.splitlines():
        partition, _, gres = line.partition("|")
        found = kinds.setdefault(partition.strip(), set())
        for word in gres.strip().split(","):
            parts = word.split("(")[0].split(":")
            if parts[0] == "gpu" and len(parts) == 3:
                found.add(parts[1])
    queues = []
    for partition, gpus in kinds.items():
        gpu = "".join(f'[[jobs.queue.gpus]]\nkind = "{kind}"\n' for kind in sorted(gpus))
        queues.append(f'[[jobs.queue]]\nname = "{partition}"\ndefault_walltime_s = 60\n{gpu}')
    return "\n".join(queues)
