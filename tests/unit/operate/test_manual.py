"""Man pages from commands."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest

from edged import manual


@click.group()
def tool() -> None:
    """A tool. It has parts."""


@tool.command()
@click.option("--deep-end", metavar="N", help="How deep; a back\\slash.")
@click.argument("name")
def dive(name: str, deep_end: str) -> None:
    """Dive.

    .begins with a dot

    \b
    kept
      as it is
    """


def test_every_command_has_a_page() -> None:
    found = dict(manual.pages(tool, "edged"))
    assert list(found) == ["edged.1", "edged-dive.1"]
    assert ".SH COMMANDS" in found["edged.1"]
    assert "edged\\-dive" in found["edged.1"]


def test_roff_sees_text_as_text() -> None:
    page = dict(manual.pages(tool, "edged"))["edged-dive.1"]
    assert "\\fB\\-\\-deep\\-end N\\fR" in page
    assert "back\\eslash" in page
    assert "\n\\&.begins" in page
    assert ".nf\nkept\n  as it is\n.fi" in page


def test_written_once_and_pages_of_lost_commands_go(tmp_path: Path) -> None:
    (tmp_path / "edged-gone.1").write_text("")
    assert len(manual.write(tool, tmp_path)) == 3
    assert manual.write(tool, tmp_path) == []
    assert {file.name for file in tmp_path.iterdir()} == {"edged.1", "edged-dive.1"}


def test_the_real_pages_are_read_without_a_warning(tmp_path: Path) -> None:
    from edged.cli import main

    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    files = manual.write(main, tmp_path)
    assert {"edged-run.1", "edged-units.1", "edged-state-migrate.1"} <= {file.name for file in files}
    command = ["groff", "-k", "-man", "-Tutf8", "-ww", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    complaints = [
        line for line in done.stderr.splitlines() if "can't break line" not in line and "adjust" not in line
    ]
    assert complaints == []
