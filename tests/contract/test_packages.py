"""What is shipped: the wheel runs an edge, the sdist can be built and tested again."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), "-t", "wheel", "-t", "sdist"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=100, check=False)
    if "No module named hatchling" in done.stderr:
        pytest.skip("hatchling is not installed: packages unproven here")
    assert done.returncode == 0, done.stderr
    return target


def test_the_wheel_has_programs_and_units_and_nothing_of_the_tests(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"edged/cli.py", "services/jobs/service.py"} <= set(names)
    units = {Path(name).name for name in names if "/share/edged/systemd/" in name}
    assert units == {file.name for file in (TREE / "systemd").rglob("*") if file.is_file()}
    assert {name.split("/")[0].partition(".data")[1] or name.split("/")[0] for name in names} <= {
        "edged",
        "services",
        ".data",
        next(name.split("/")[0] for name in names if ".dist-info/" in name),
    }


def test_the_sdist_has_what_a_site_operates_with(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "requirements.lock", "Makefile"} <= names
    assert {"ansible/site.yml", "systemd/edged.target", "tests/contract/test_packages.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "dist/"))]
