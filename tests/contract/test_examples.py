"""What the documentation shows works: TOML parses as a configuration, and every `edged …` command is one."""

from __future__ import annotations

import re
import tomllib
from functools import reduce
from pathlib import Path
from typing import Any

import click
import pytest

from edged import config as configuration
from edged.cli import main
from edged.errors import ConfigError

TREE = Path(__file__).parents[2]
PAGES = sorted(
    [
        TREE / "README.md",
        *TREE.glob("services/**/*.md"),
        *TREE.glob("systemd/*.md"),
        *TREE.glob("ansible/*.md"),
    ]
)
ISSUER = "https://issuer.example.org/"
# what an excerpt leaves out
BASE: dict[str, Any] = {
    "site": {"name": "EXAMPLE"},
    "tls": {"certificate": "/etc/tls/cert.pem", "key": "/etc/tls/key.pem"},
    "issuer": [{"url": ISSUER, "audience": ["https://edge.example.org"], "vo": "cms"}],
    "mapping": [{"issuer": ISSUER, "account": "cmsprd"}],
    "identity": {"assertions": [{"service": "jobs", "accounts": ["cmsprd", "cmsana", "alice"]}]},
}


def name(page: Path) -> str:
    return str(page.relative_to(TREE))


def together(one: Any, other: Any) -> Any:
    """Two excerpts as one file: tables are merged, arrays of tables follow each other."""
    if isinstance(one, dict) and isinstance(other, dict):
        common = {key: together(one[key], other[key]) for key in one.keys() & other.keys()}
        return {**one, **other, **common}
    if (
        isinstance(one, list)
        and isinstance(other, list)
        and all(isinstance(row, dict) for row in one + other)
    ):
        return one + other
    return other


def examples() -> list[Any]:
    """Each TOML block with those before it on its page, as a reader comes to it."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.M | re.S)
        found += [pytest.param(blocks[: at + 1], id=f"{name(page)}-{at}") for at in range(len(blocks))]
    return found


@pytest.mark.parametrize("blocks", examples())
def test_toml_is_a_configuration(blocks: list[str]) -> None:
    *before, last = map(tomllib.loads, blocks)
    try:
        configuration.parse({**BASE, **last})
    except ConfigError:  # it goes on with what the page has shown
        configuration.parse({**BASE, **reduce(together, [*before, last])})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    """In code only: prose says "edged is" too."""
    text = page.read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    code = [block for language, block in fenced if language in ("", "sh", "bash", "console")]
    code += re.findall(r"`(edged [^`\n]+)`", text)
    top = click.Context(main)
    lines = re.sub(r"\s#.*", "", "\n".join(code))
    for words in re.findall(r"(?:^|\s)edged ((?:[a-z-]+ ?){1,2})", lines):
        first, *more = words.split()
        command = main.get_command(top, first)
        assert command is not None, f"edged {words}"
        if more and isinstance(command, click.Group):
            assert command.get_command(click.Context(command), more[0]) is not None, f"edged {words}"
