"""The seams of the design, held by the import graph and the operation tables."""

from __future__ import annotations

import ast
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
