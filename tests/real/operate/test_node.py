"""A compute node on a real systemd: the role comes, changes with its variables, and goes without a trace."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.edge import Played, play, reached
from tests.support.machine import CannotBoot, Machine, booted

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FAR4, OTHER4, FAR6 = "188.184.0.0/15", "192.0.2.0/24", "2001:1458::/32"
EDGE6 = "fd00:e::1"
WROTE = (
    *("/etc/cvmfs/default.d/70-edged.conf", "/etc/profile.d/edged.sh", "/etc/default/edged-mark"),
    *("/etc/systemd/system/edged-routes.service",),
    *("/etc/slurm/prolog.d/50-edged-mark", "/etc/slurm/epilog.d/50-edged-mark"),
)
# what the site's CVMFS brings; it notes that it was called
CVMFS_CONFIG = '#!/bin/sh\necho "$@" >>/var/tmp/cvmfs-called\n'


@dataclass(slots=True)
class Node:
    """The machine; ``play`` applies the role with other variables."""

    machine: Machine
    files: Path

    def play(self, **variables: Any) -> Played:
        host = {**reached(self.machine), **self.usual(), **variables}
        inventory = {"edged_nodes": {"hosts": {"node": host}}}
        (self.files / "hosts.json").write_text(json.dumps(inventory))
        return play(self.files)

    def usual(self) -> dict[str, Any]:
        """As the site's inventory has it."""
        return {
            "edged_node_edge": self.machine.outside,
            "edged_node_repositories": ["cms.cern.ch", "software.eessi.io"],
            "edged_node_routes": [
                {"to": FAR4, "via": self.machine.outside},
                {"to": FAR6, "via": EDGE6},
            ],
            "edged_node_marks": True,
        }

    def routes(self) -> set[str]:
        """Destinations of the routes that are not the kernel's own."""
        found = [
            json.loads(self.machine.read("ip", "-j", family, "route", "show", "proto", "119") or "[]")
            for family in ("-4", "-6")
        ]
        return {route["dst"] for family in found for route in family}

    def shell(self, command: str) -> str:
        """What a user's login shell says."""
        return self.machine.read("su", "-", "nobody", "-s", "/bin/bash", "-c", command)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="edged-node-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        files = scratch / "play"
        files.mkdir()
        try:
            with booted(
                f"node{os.getpid()}", scratch / "machine", capabilities=("CAP_NET_ADMIN",)
            ) as machine:
                subprocess.run(
                    ["ip", "-n", machine.namespace, "addr", "add", "fd00:e::2/64", "dev", "host0", "nodad"],
                    check=True,
                    timeout=10,
                )
                machine.write("/usr/bin/cvmfs_config", CVMFS_CONFIG, 0o755)
                yield Node(machine, files)
        except CannotBoot as why:
            pytest.skip(f"UNPROVEN HERE: edged_node was not tried on a booted systemd: {why}")


def test_it_comes_and_a_second_play_changes_nothing(node: Node) -> None:
    before = node.machine.read("find", "/etc", "-newermt", "1970-01-02", "-name", "*edged*")
    assert before == ""
    first = node.play()
    assert first.changed > 0
    assert node.play().changed == 0


def test_cvmfs_asks_the_edge(node: Node) -> None:
    said = node.machine.read(
        "sh", "-c", ". /etc/cvmfs/default.d/70-edged.conf; echo $CVMFS_HTTP_PROXY $CVMFS_REPOSITORIES"
    )
    assert said == f"http://{node.machine.outside}:3128 cms.cern.ch,software.eessi.io"
    assert node.machine.read("cat", "/var/tmp/cvmfs-called") == "reload", "called once, by the first play"


def test_shells_know_the_proxy_and_a_jobs_own_goes_before_it(node: Node) -> None:
    proxy = f"http://{node.machine.outside}:3129"
    assert node.shell("echo $https_proxy $HTTP_PROXY $no_proxy") == f"{proxy} {proxy} localhost,127.0.0.1"
    own = node.machine.read(
        "env", "HTTPS_PROXY=http://job", "bash", "-c", ". /etc/profile.d/edged.sh; echo $https_proxy"
    )
    assert own == "http://job"


def test_far_networks_are_reached_through_the_edge_also_after_a_restart(node: Node) -> None:
    assert node.routes() == {FAR4, FAR6}
    assert node.machine.read("ip", "route", "get", "188.184.1.1").startswith(
        f"188.184.1.1 via {node.machine.outside} "
    )
    assert f"via {EDGE6} " in node.machine.read("ip", "-6", "route", "get", "2001:1458::1")
    assert node.machine.property("edged-routes.service", "UnitFileState") == "enabled"
    node.machine.run("systemctl", "restart", "edged-routes.service")
    assert node.routes() == {FAR4, FAR6}


def test_prolog_and_epilog_run_as_slurm_calls_them(node: Node) -> None:
    """What they do to packets is tested beside the gate (tests/real/egress/test_nat.py)."""
    job = ["env", "SLURM_JOB_ID=77", "SLURM_JOB_USER=nobody"]
    for context, directory in (("prolog_slurmd", "prolog.d"), ("epilog_slurmd", "epilog.d")):
        node.machine.run(
            *job, f"SLURM_SCRIPT_CONTEXT={context}", f"/etc/slurm/{directory}/50-edged-mark", limit_s=10
        )


def test_what_the_variables_switch_off_goes(node: Node) -> None:
    routes = [{"to": OTHER4, "via": node.machine.outside}]
    assert node.play(edged_node_routes=routes, edged_node_marks=False).changed > 0
    assert node.routes() == {OTHER4}
    assert not _there(node, WROTE[-2]) and _there(node, WROTE[0])
    node.play(edged_node_routes=[], edged_node_proxy_port=0, edged_node_marks=False)
    assert node.routes() == set()
    assert not _there(node, "/etc/profile.d/edged.sh")
    assert not _there(node, "/etc/systemd/system/edged-routes.service")


def test_it_goes_without_a_trace(node: Node) -> None:
    node.play()
    site_own = "/etc/cvmfs/default.local"
    node.machine.write(site_own, "CVMFS_QUOTA_LIMIT=1\n")
    assert node.play(edged_node_state="absent").changed > 0
    assert not [file for file in WROTE if _there(node, file)]
    assert node.routes() == set()
    assert _there(node, site_own)
    assert node.machine.run("systemctl", "cat", "edged-routes.service", check=False).returncode != 0
    assert node.play(edged_node_state="absent").changed == 0


def _there(node: Node, file: str) -> bool:
    return node.machine.run("test", "-e", file, check=False).returncode == 0
