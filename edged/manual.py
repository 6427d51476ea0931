"""Man pages, from the definitions of the commands themselves: what ``--help`` says, as roff.

Source of the format: man(7), man-pages(7).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from edged import __version__


def pages(
    command: click.Command, name: str = "edged", above: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """(file name, roff) of a command and of everything below it: ``edged-state-migrate.1``."""
    context = click.Context(command, info_name=name.rpartition("-")[2], parent=above)
    yield f"{name}.1", _page(command, context, name)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None and not found.hidden:
                yield from pages(found, f"{name}-{below}", context)


def write(command: click.Command, directory: Path) -> list[Path]:
    """Write all pages; returns those that were new or changed. Pages of commands that are gone are removed."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = dict(pages(command))
    changed = []
    for name, text in wanted.items():
        file = directory / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
            changed.append(file)
    for file in directory.glob("edged*.1"):
        if file.name not in wanted:
            file.unlink()
            changed.append(file)
    return changed


def _page(command: click.Command, context: click.Context, name: str) -> str:
    parts = [
        f'.TH "{name.upper()}" 1 "" "edged {__version__}" "edged"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(command.get_short_help_str(limit=200))}",
        ".SH SYNOPSIS",
        f"\\fB{_text(context.command_path)}\\fR {_text(' '.join(command.collect_usage_pieces(context)))}",
        ".SH DESCRIPTION",
        *_description(inspect.cleandoc(command.help or "")),
        *_parameters(command, context),
        *_below(command, context, name),
        *_see_also(context, name),
    ]
    return "\n".join(parts) + "\n"


def _description(text: str) -> Iterator[str]:
    """Paragraphs; a ``\\b`` on a line of its own keeps the lines below as they are (click)."""
    for paragraph in re.split(r"\n\s*\n", text.split("\f", maxsplit=1)[0].strip()):
        yield ".PP"
        if paragraph.startswith("\b\n"):
            yield from (".nf", _text(paragraph.removeprefix("\b\n")), ".fi")
        else:
            yield _text(" ".join(paragraph.split()))


def _parameters(command: click.Command, context: click.Context) -> Iterator[str]:
    records = [found for one in command.get_params(context) if (found := one.get_help_record(context))]
    if records:
        yield ".SH OPTIONS"
    for option, meaning in records:
        yield from (".TP", f"\\fB{_text(option)}\\fR", _text(meaning))


def _below(command: click.Command, context: click.Context, name: str) -> Iterator[str]:
    if not isinstance(command, click.Group):
        return
    yield ".SH COMMANDS"
    for below in command.list_commands(context):
        found = command.get_command(context, below)
        if found is not None and not found.hidden:
            page = f"{name}-{below}"
            yield from (".TP", f"\\fB{_text(page)}\\fR(1)", _text(found.get_short_help_str(limit=200)))


def _see_also(context: click.Context, name: str) -> Iterator[str]:
    if context.parent is not None:
        yield from (".SH SEE ALSO", f"\\fB{_text(name.rpartition('-')[0])}\\fR(1)")


def _text(text: str) -> str:
    """Characters that roff would read as its own: backslash, hyphen-minus, a dot or quote that begins a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.M)
