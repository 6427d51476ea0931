"""The audit logs: the newest lines that name a job or a subject, and what is refused most. Blocking; in threads.

Read from the end, and no further than a limit: a search costs the same on a log of a day and of a year.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edged.config import Config

BLOCK = 256 << 10
MAX_LINE = 64 << 10
UNITS = Path("/var/log/edged")


class Decision(msgspec.Struct, frozen=True):
    """One audit line. Fields it does not name are in ``more``."""

    time: str = ""
    event: str = ""
    who: dict[str, Any] = {}
    allowed: bool | None = None
    reason: str = ""
    account: str = ""
    job: str = ""
    request: str = ""
    detail: str = ""
    times: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """Newest first. ``unread``: files that could not be read, ``whole``: everything was looked at."""

    lines: list[Decision] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    whole: bool = True


_decode = msgspec.json.Decoder(Decision).decode


def files(config: Config) -> list[Path]:
    """The configured ones; else the one of this process's configuration, and those of the units."""
    if config.portal is not None and config.portal.audit_files:
        return list(config.portal.audit_files)
    if config.log.audit_file is None:
        return []
    name = config.log.audit_file.name
    found = [config.log.audit_file, *sorted(UNITS.glob(f"*/{name}"))]
    return [file for file in dict.fromkeys(found) if file.exists()]


def backwards(file: Path, limit: int, block: int = BLOCK) -> Iterator[bytes]:
    """Lines from the last to the first, of at most the last ``limit`` bytes. Raises OSError."""
    with file.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        stop, rest = max(0, end - limit), b""
        while end > stop:
            start = max(stop, end - block)
            log.seek(start)
            lines = (log.read(end - start) + rest).split(b"\n")
            rest, end = lines[0][-MAX_LINE:], start
            yield from reversed(lines[1:])
        if stop == 0:
            yield rest


def search(places: Sequence[Path], text: str, *, limit: int, most: int) -> Answer:
    """Lines in which ``text`` occurs, without regard to case: a job, subject, account, token or request id."""
    # in the file the text is inside JSON strings: escaped as there, without the quotes
    needle = msgspec.json.encode(text.strip())[1:-1].lower()
    found: list[Decision] = []
    unread: list[str] = []
    whole = True
    for file in places:
        hits = 0
        try:
            for line in backwards(file, limit):
                if needle in line.lower() and (decision := _decision(line)) is not None:
                    found.append(decision)
                    hits += 1
                    if hits >= most:
                        break
            whole = whole and hits < most and file.stat().st_size <= limit
        except OSError as error:
            unread.append(f"{file}: {error.strerror}")
    found.sort(key=lambda decision: decision.time, reverse=True)
    return Answer(found[:most], unread, whole)


def refusals(places: Sequence[Path], since: str, *, limit: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """(what, reason) → how often since a time (RFC 3339), and the files that could not be read."""
    counts: Counter[tuple[str, str]] = Counter()
    unread: list[str] = []
    for file in places:
        try:
            for line in backwards(file, limit):
                if b'"allowed":false' not in line or (decision := _decision(line)) is None:
                    continue
                if decision.time < since:
                    break
                counts[decision.event, decision.reason] += decision.times
        except OSError as error:
            unread.append(f"{file}: {error.strerror}")
    return counts, unread


def _decision(line: bytes) -> Decision | None:
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # cut by a crash, or not ours
