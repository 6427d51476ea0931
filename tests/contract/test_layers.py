"""The seams of the design, held by the import graph and the operation tables."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted([*ROOT.glob("edged/**/*.py"), *ROOT.glob("services/**/*.py")])


def imports(file: Path) -> set[str]:
    """Every module a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_point_one_way(file: Path) -> None:
    relative = file.relative_to(ROOT)
    for module in imports(file):
        if relative.parts[0] == "edged":
            assert not module.startswith("services"), "the core never imports services"
        elif module.startswith("services."):
            assert module.split(".")[1] == relative.parts[1], "services never import one another"


@pytest.mark.parametrize("service", sorted(p.parent.name for p in ROOT.glob("services/*/service.py")))
def test_each_service_tells_its_operator(service: str) -> None:
    assert (ROOT / "services" / service / "README.md").is_file()


def test_no_smells() -> None:
    for file in CODE:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                assert not (isinstance(node.value, ast.Constant) and node.value.value is True), file
            if isinstance(node, ast.Attribute) and node.attr in ("FileResponse", "CERT_NONE"):
                raise AssertionError(f"{file}:{node.lineno} {node.attr}")


NETWORK = {"aiohttp", "asyncio", "asyncssh", "jwt", "pydantic", "prometheus_client", "sqlalchemy", "uvloop"}


def loaded(program: str) -> set[str]:
    """The modules of a fresh interpreter that ran ``program``."""
    told = f"import sys\n{program}\nprint(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-P", "-c", told], text=True).split())


def test_what_has_privilege_is_made_of_little() -> None:
    found = loaded("import edged.accounts.__main__, edged.accounts.accountd")
    assert "edged.accounts.admission" in found
    assert not found & NETWORK


def test_workers_are_made_of_verbs_and_no_client_of_the_network() -> None:
    found = loaded("from edged.accounts import batch, zygote\nbatch.load_verbs()")
    assert {"services.jobs.batch.slurm.listings", "services.jobs.batch.ssh.driver"} <= found
    assert not found & NETWORK


def test_what_is_not_configured_is_not_loaded() -> None:
    found = loaded(
        "from edged import config, run, services\n"
        "services.known(config.parse({'site': {'name': 'X'}, 'jobs': {}, 'accounts': {'mode': 'self'}}))"
    )
    assert {"services.jobs.service", "services.identity.service"} <= found
    assert not found & {f"services.{name}.service" for name in ("storage", "cache", "egress", "portal")}
    assert "sqlalchemy.dialects.postgresql" not in found
