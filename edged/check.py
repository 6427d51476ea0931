"""``edged check``: a configuration's errors, warnings, and on demand whether what it names elsewhere works.

Ansible runs it for every file: asyncio and the doctor are imported only when something is tried.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edged import config as configuration
from edged.accounts.beneath import missing_kernel_support
from edged.config import Config, given
from edged.errors import ConfigError

if TYPE_CHECKING:
    from edged.doctor import Finding

WRONG = 1  # of what was tried
INVALID = 2


@dataclass(slots=True)
class Checked:
    """What was found. ``tried`` is None when nothing was to be tried."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tried: list[Finding] | None = None

    @property
    def status(self) -> int:
        """The command's exit status."""
        if self.errors:
            return INVALID
        return WRONG if any(not finding.ok for finding in self.tried or ()) else 0

    def as_json(self) -> str:
        """For programs; ``tried`` is there only when something was to be tried."""
        told: dict[str, object] = {"errors": self.errors, "warnings": self.warnings}
        if self.tried is not None:
            told["tried"] = [asdict(finding) for finding in self.tried]
        return json.dumps(told, indent=2)

    def tell(self, file: str) -> None:
        """For people: what is wrong on stderr."""
        for problem in self.errors:
            click.echo(f"error: {problem}", err=True)
        for warning in self.warnings:
            click.echo(f"warning: {warning}", err=True)
        if not self.errors:
            click.echo(f"{file}: ok" + (f", {len(self.warnings)} warnings" if self.warnings else ""))
        if self.tried is not None:
            from edged import doctor

            click.echo(doctor.told(self.tried))


def checked(file: Path, proposed: Path | None, replacing: Path | None, *, connect: bool) -> Checked:
    """Read ``proposed`` (in place of ``replacing``, when given) or ``file``, and judge it."""
    try:
        if proposed is not None and replacing is not None:
            config = configuration.load(file, {replacing: proposed})
        else:
            config = configuration.load(proposed or file)
    except ConfigError as error:
        return Checked(error.problems, tried=[] if connect else None)
    found = Checked(missing_kernel_support(), [*configuration.warnings(config), *given.missing(config)])
    if connect:
        found.tried = [] if found.errors else _tried(config)
    return found


def _tried(config: Config) -> list[Finding]:
    import asyncio

    from edged import doctor

    return asyncio.run(doctor.examined(config, doctor.ELSEWHERE))
