"""The roles as Ansible's own tools judge them, and converging where no systemd runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from edged.config.site import Observe

ANSIBLE = Path(__file__).parents[2] / "ansible"
BIN = Path(sys.executable).parent
ROLES = sorted((ANSIBLE / "roles").iterdir())


def _run(*command: str, home: Path) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}:{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "ANSIBLE_HOME": str(home), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        command, cwd=ANSIBLE, env=environment, capture_output=True, text=True, timeout=110, check=False
    )


def test_ansible_lint_in_its_production_profile(tmp_path: Path) -> None:
    if not (BIN / "ansible-lint").exists():
        pytest.skip("ansible-lint is not installed: the roles' style is unproven here")
    done = _run(str(BIN / "ansible-lint"), "--offline", "--nocolor", "--profile", "production", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("playbook", ["site.yml", "rollback.yml", "uninstall.yml"])
def test_the_example_inventory_fits_the_playbooks(playbook: str, tmp_path: Path) -> None:
    if not (BIN / "ansible-playbook").exists():
        pytest.skip("ansible-core is not installed")
    command = (str(BIN / "ansible-playbook"), "-i", "inventory/example", "--syntax-check", playbook)
    done = _run(*command, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_no_shell_and_no_secret_on_a_command_line(role: Path) -> None:
    for file in role.glob("tasks/*.yml"):
        for task in _tasks(yaml.safe_load(file.read_text())):
            assert not {"ansible.builtin.shell", "ansible.builtin.raw"} & set(task), f"{file}: {task['name']}"
            assert task.get("name"), f"{file}: a task without a name"


def _tasks(found: list[dict[str, object]]) -> list[dict[str, object]]:
    below = [inner for task in found for inner in _tasks(task.get("block", []))]  # type: ignore[arg-type]
    return [*found, *below]


def test_the_monitoring_role_comes_and_goes_without_a_service_manager(tmp_path: Path) -> None:
    """On this machine itself, with all paths below a scratch directory."""
    if not (BIN / "ansible-playbook").exists():
        pytest.skip("ansible-core is not installed")
    source = ANSIBLE / "roles/edged_monitoring"
    shutil.copytree(source, tmp_path / "roles/edged_monitoring")
    play = tmp_path / "play.yml"
    play.write_text(
        yaml.safe_dump(
            [
                {
                    "hosts": "localhost",
                    "connection": "local",
                    "gather_facts": False,
                    "roles": ["edged_monitoring"],
                    "vars": {
                        "ansible_python_interpreter": sys.executable,
                        "edged_monitoring_edges": ["edge1.example.org"],
                        "edged_monitoring_prometheus_dir": str(tmp_path / "prometheus"),
                        "edged_monitoring_grafana_dir": str(tmp_path / "grafana"),
                        "edged_monitoring_dashboards_dir": str(tmp_path / "dashboards"),
                        "edged_monitoring_prometheus_service": "",
                    },
                }
            ]
        )
    )
    if os.geteuid() != 0:
        pytest.skip("the role gives its files to root")
    command = (str(BIN / "ansible-playbook"), "-i", "localhost,", str(play))
    first, second = _run(*command, home=tmp_path), _run(*command, home=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "changed=0" in second.stdout, second.stdout
    scrape = yaml.safe_load((tmp_path / "prometheus/scrape.d/edged.yml").read_text())
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in scrape["scrape_configs"]}
    assert jobs["edged-jobs"] == ["edge1.example.org:9467"]
    assert {name.removeprefix("edged-"): targets[0].rpartition(":")[2] for name, targets in jobs.items()} == {
        service: address.rpartition(":")[2] for service, address in Observe().services.items()
    }, "every service, where its health listener is by default"
    inventory = tmp_path / "hosts.json"
    here = {"edged_config": {"identity": {"listen": ["x"]}, "storage": {"xrootd": {}}, "portal": {}}}
    inventory.write_text(json.dumps({"all": {"hosts": {"localhost": {}, "edge1.example.org": here}}}))
    told = _run(str(BIN / "ansible-playbook"), "-i", str(inventory), str(play), home=tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr
    scrape = yaml.safe_load((tmp_path / "prometheus/scrape.d/edged.yml").read_text())
    served = {job["job_name"].removeprefix("edged-") for job in scrape["scrape_configs"]}
    assert served == {"identity", "issuers", "identity-api", "storage", "portal", "xrootd"}
    gone = _run(*command, "--extra-vars", "edged_monitoring_state=absent", home=tmp_path)
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert not [file for file in (tmp_path / "prometheus").rglob("*") if file.is_file()]


def test_both_families_say_the_same_things() -> None:
    families = [yaml.safe_load((ANSIBLE / f"roles/edged/vars/{name}.yml").read_text()) for name in FAMILIES]
    assert set(families[0]) == set(families[1])
    assert "python3.11" in families[1]["edged_packages_default"], "EL 9's own Python is 3.9"


FAMILIES = ("Debian", "RedHat")


def test_the_firewall_opens_all_that_listens_to_others(tmp_path: Path) -> None:
    """Ports of sections and those below them, of root:// and the data servers behind its redirector."""
    if not (BIN / "ansible-playbook").exists():
        pytest.skip("ansible-core is not installed")
    role = ANSIBLE / "roles/edged"
    site = {
        "ansible_python_interpreter": sys.executable,
        "edged_site_name": "TEST",
        "edged_config": {
            "identity": {"listen": ["0.0.0.0:8443", "[::]:8443"]},
            "jobs": {
                "listen": ["0.0.0.0:8444", "/run/edged/own.sock"],
                "interlink": {"listen": ["[::]:8447"]},
            },
            "storage": {"listen": ["0.0.0.0:8446"], "xrootd": {"data_port": 11000}},
            "egress": {"listen": ["10.0.0.1:3129"], "relay": [{"name": "db", "listen": ["10.0.0.1:5432"]}]},
        },
        "edged_site_vos": {"cms": {"exports": [{}, {}]}, "ska": {"exports": [{}]}, "ops": {}},
    }
    template = {
        "src": str(role / "templates/firewalld.xml.j2"),
        "dest": str(tmp_path / "edged.xml"),
        "mode": "0644",
    }
    tasks = [
        {"ansible.builtin.include_vars": str(role / "vars/main.yml")},
        {"ansible.builtin.template": template},
    ]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": site, "tasks": tasks}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    done = _run(str(BIN / "ansible-playbook"), "-i", "localhost,", str(tmp_path / "play.yml"), home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    service = ElementTree.parse(tmp_path / "edged.xml").getroot()
    ports = [int(port.attrib["port"]) for port in service.iter("port")]
    assert ports == [1094, 3129, 5432, 8443, 8444, 8446, 8447, 11000, 11001, 11002]
