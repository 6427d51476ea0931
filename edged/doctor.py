"""``edged doctor``: what every part found out about itself and what it stands on, and what to do about it.

Parts bring ``async findings(config) -> list[Finding]`` by the entry point group ``edged.doctor``. All are
asked at once; one that hangs or breaks becomes a finding itself.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import click

from edged.cli import CONFIG
from edged.config import Config
from edged.errors import BadRequest, EdgeError

DEADLINE_S = 20.0
ELSEWHERE = ("jobs-clusters",)  # parts that log in to other machines: `edged check --connect` tries them too


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``advice`` is what to do when it is not ``ok``."""

    part: str
    ok: bool
    text: str
    advice: str = ""


Examine = Callable[[Config], Awaitable[list[Finding]]]


def parts() -> list[EntryPoint]:
    """All there are, in the order of their names."""
    return sorted(entry_points(group="edged.doctor"), key=lambda point: point.name)


def chosen(names: Sequence[str]) -> list[EntryPoint]:
    """The parts of these names with those below them (``jobs`` has ``jobs-clusters`` too); no name: all.

    Raises BadRequest for a name that no part has.
    """
    points = parts()
    for name in names:
        if not any(_below(point.name, name) for point in points):
            raise BadRequest(f"no part {name!r}; there are {', '.join(point.name for point in points)}")
    return [point for point in points if not names or any(_below(point.name, name) for name in names)]


def _below(name: str, part: str) -> bool:
    return name == part or name.startswith(part + "-")


async def examined(
    config: Config, names: Sequence[str] = (), deadline_s: float = DEADLINE_S
) -> list[Finding]:
    """What the parts of these names say, or all."""
    points = chosen(names)
    found = await asyncio.gather(*(_asked(point.name, point.load(), config, deadline_s) for point in points))
    return [finding for findings in found for finding in findings]


async def _asked(name: str, examine: Examine, config: Config, deadline_s: float) -> list[Finding]:
    try:
        async with asyncio.timeout(deadline_s):
            return await examine(config)
    except TimeoutError:
        return [
            Finding(
                name, False, f"no answer within {deadline_s:.0f} s", "what it looks at hangs: see the log"
            )
        ]
    except (EdgeError, OSError, subprocess.SubprocessError) as error:
        return [Finding(name, False, f"cannot be examined: {error}", "run it as root, on the edge itself")]


def told(findings: list[Finding], *, only_wrong: bool = False) -> str:
    """For a terminal, each finding with what to do."""
    width = max((len(finding.part) for finding in findings), default=0)
    lines: list[str] = []
    for finding in findings:
        if only_wrong and finding.ok:
            continue
        mark = "ok   " if finding.ok else "WRONG"
        lines.append(f"{mark}  {finding.part.ljust(width)}  {finding.text}")
        if not finding.ok and finding.advice:
            lines.append(f"{'':5}  {'':{width}}  -> {finding.advice}")
    wrong = sum(not finding.ok for finding in findings)
    return "\n".join([*lines, f"{len(findings)} looked at, {wrong} wrong"])


@click.command()
@click.argument("part", nargs=-1)
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--wrong", is_flag=True, help="Only what is wrong.")
def doctor(part: tuple[str, ...], config_file: Path, as_json: bool, wrong: bool) -> None:
    """Look at everything edged stands on, or at each PART of it (jobs, storage, clock …).

    Each finding says what to do. Exit status 1: something is wrong.
    """
    from edged import config as configuration

    findings = asyncio.run(examined(configuration.load(config_file), part))
    if as_json:
        shown = [asdict(finding) for finding in findings if not (wrong and finding.ok)]
        click.echo(json.dumps(shown, indent=2))
    else:
        click.echo(told(findings, only_wrong=wrong))
    sys.exit(0 if all(finding.ok for finding in findings) else 1)
