"""From TOML to the frozen tree, with every error under its dotted path."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from edged.config import checks, telling
from edged.config.base import Section
from edged.config.cache import Cache
from edged.config.egress import Egress
from edged.config.identity import Accounts, Identity, Issuer
from edged.config.identity import Mapping as MappingRule
from edged.config.jobs import Jobs
from edged.config.portal import Portal
from edged.config.site import Log, Observe, Runtime, Site, Tls
from edged.config.storage import Storage
from edged.errors import ConfigError

DEFAULT_FILE = Path("/etc/edged/edged.toml")


class Config(Section):
    """Everything. A service whose section is absent does not run."""

    site: Site
    runtime: Runtime = Runtime()
    tls: Tls = Tls()
    log: Log = Log()
    observe: Observe = Observe()
    issuers: tuple[Issuer, ...] = Field(default=(), alias="issuer")
    mappings: tuple[MappingRule, ...] = Field(default=(), alias="mapping")
    identity: Identity = Identity()
    accounts: Accounts = Accounts()
    jobs: Jobs | None = None
    storage: Storage | None = None
    cache: Cache | None = None
    egress: Egress | None = None
    portal: Portal | None = None


def load(file: Path = DEFAULT_FILE, instead: Mapping[Path, Path] | None = None) -> Config:
    """Read ``file`` and ``conf.d/*.toml`` beside it. Raises ConfigError with all problems.

    ``instead``: file → the one to read in its place; so a new file is tried among those that stay.
    """
    candidates = dict(instead or {})
    extras = {*(file.parent / "conf.d").glob("*.toml"), *candidates} - {file}
    tree = _read(candidates.get(file, file))
    for extra in sorted(extras):
        tree = _merged(tree, _read(candidates.get(extra, extra)))
    return parse(tree)


def parse(tree: Mapping[str, Any]) -> Config:
    """The configuration from an already decoded tree. Raises ConfigError with all problems."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(
            [telling.problem(item, Config) for item in error.errors(include_url=False)]
        ) from None
    problems = list(checks.problems(config))
    if problems:
        raise ConfigError(problems)
    return config


def warnings(config: Config) -> Iterable[str]:
    """What is legal but unwise, each with its dotted path."""
    return checks.warnings(config)


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except PermissionError as error:
        hint = "root and the services' group read it: chgrp edged, chmod 640"
        raise ConfigError([f"{file}: {error.strerror} ({hint})"]) from None
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file}: {error}"]) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{file}: {error}{_line_of(text, str(error))}"]) from None


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """``second`` over ``first``: tables merge, lists of tables are appended, the rest replaces."""
    result = dict(first)
    for key, value in second.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            result[key] = _merged(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            result[key] = [*before, *value]
        else:
            result[key] = value
    return result


def _line_of(text: str, said: str) -> str:
    """The line that is meant; TOML's own words name only its number."""
    found = re.search(r"at line (\d+)", said)
    lines = text.splitlines()
    if found is None or not 0 < int(found[1]) <= len(lines):
        return ""
    hint = "; text stands in quotes" if said.startswith("Invalid value") else ""
    return f": {lines[int(found[1]) - 1].strip()[:80]}{hint}"
