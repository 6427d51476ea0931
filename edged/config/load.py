"""From TOML to the frozen tree, with every error under its dotted path."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from edged.config import checks
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
        raise ConfigError([_problem(item) for item in error.errors(include_url=False)]) from None
    problems = list(checks.problems(config))
    if problems:
        raise ConfigError(problems)
    return config


def warnings(config: Config) -> Iterable[str]:
    """What is legal but unwise, each with its dotted path."""
    return checks.warnings(config)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{file}: {error}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: {error}"]) from None


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


def _problem(item: Any) -> str:
    """``storage.export[2].root: not an absolute path`` from a pydantic error."""
    path = ""
    for part in item["loc"]:
        if str(part).startswith("<"):  # the tag of a union, no key of the file
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        text = "unknown key (a spelling mistake, or a newer edged's)"
    elif item["type"] == "missing":
        text = "missing: this key is required"
    return f"{path}: {text}"
