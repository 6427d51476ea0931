"""Slurm's compressed node lists: ``c[1-3,07],g1`` → c1, c2, c3, c07, g1."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_NODES = 100_000

_PART = re.compile(r"([^,\[\]]*)\[([0-9,\-]+)\]|([^,\[\]]+)")


def expand(text: str) -> tuple[str, ...]:
    """The names in a list; empty for Slurm's ways of saying none. At most MAX_NODES are given."""
    if text in ("", "(null)", "None assigned", "None", "n/a"):
        return ()
    found: list[str] = []
    for item in _split(text):
        found.extend(_expand_item(item))
        if len(found) > MAX_NODES:
            return tuple(found[:MAX_NODES])
    return tuple(found)


def _split(text: str) -> Iterator[str]:
    """At commas outside brackets."""
    depth = start = 0
    for position, letter in enumerate(text):
        if letter == "[":
            depth += 1
        elif letter == "]":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def _expand_item(item: str) -> list[str]:
    names = [""]
    for match in _PART.finditer(item):
        if match[3] is not None:
            names = [name + match[3] for name in names]
            continue
        numbers = [number for piece in match[2].split(",") for number in _numbers(piece)]
        names = [name + match[1] + number for name in names for number in numbers][:MAX_NODES]
    return names


def _numbers(piece: str) -> list[str]:
    first, _, last = piece.partition("-")
    if not first.isdigit() or not last.isdigit():  # one number, or nothing that Slurm prints
        return [first or last]
    end = min(int(last), int(first) + MAX_NODES)
    return [str(number).zfill(len(first)) for number in range(int(first), end + 1)]
