"""Who used what: rows by day from every service, their sums, and ``edged usage``.

Services bring ``records(config, Span) -> Iterable[Usage]`` by the entry point group ``edged.usage``; it
reads the service's own database. What was not measured is None, never 0.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import click
import msgspec

from edged.cli import CONFIG
from edged.config import Config
from edged.errors import BadRequest

DAY_S = 86400
HOUR_S = 3600.0
NOT_MEASURED = "not measured"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one group of work used on one UTC day. Times in seconds, sizes in bytes.

    ``cpu_allocated_s`` is cores times wall time; ``cpu_measured_s`` the part of it whose use was measured,
    ``cpu_used_s`` that use. The same for GPUs.
    """

    day: str
    vo: str
    account: str = ""
    job_class: str = ""
    queue: str = ""
    gpu_kind: str = ""
    jobs: int = 0
    finished: int = 0
    wall_s: float = 0.0
    cpu_allocated_s: float = 0.0
    cpu_measured_s: float = 0.0
    cpu_used_s: float | None = None
    gpu_allocated_s: float = 0.0
    gpu_measured_s: float = 0.0
    gpu_used_s: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def cpu_efficiency(self) -> float | None:
        """Used over allocated where it was measured, 0 to 1; None: not measured."""
        return (
            self.cpu_used_s / self.cpu_measured_s
            if self.cpu_used_s is not None and self.cpu_measured_s
            else None
        )

    @property
    def gpu_efficiency(self) -> float | None:
        """The same for GPUs."""
        return (
            self.gpu_used_s / self.gpu_measured_s
            if self.gpu_used_s is not None and self.gpu_measured_s
            else None
        )


GROUPS = ("day", "vo", "account", "job_class", "queue", "gpu_kind")
SUMS = tuple(name for name in Usage.__struct_fields__ if name not in GROUPS)
COLUMNS = (
    "jobs",
    "finished",
    "cpu_h",
    "cpu_measured_h",
    "cpu_used_h",
    "cpu_efficiency",
    "gpu_h",
    "gpu_measured_h",
    "gpu_used_h",
    "gpu_efficiency",
    "bytes_in",
    "bytes_out",
)
SHOWN = tuple(name for name in COLUMNS if not name.endswith("_measured_h"))  # a terminal is only so wide


@dataclass(frozen=True, slots=True)
class Span:
    """UTC days ``first`` to ``last`` inclusive, as ``2026-01-31``; ``vos`` empty: all."""

    first: str
    last: str
    vos: tuple[str, ...] = ()

    @property
    def begins(self) -> float:
        """Unix seconds of its start."""
        return _unix(self.first)

    @property
    def ends(self) -> float:
        """Unix seconds just after it."""
        return _unix(self.last) + DAY_S


Records = Callable[[Config, Span], Iterable[Usage]]


def _unix(day: str) -> float:
    import calendar

    return float(calendar.timegm(time.strptime(day, "%Y-%m-%d")))


def day_of(moment: float) -> str:
    """The UTC day of a Unix time."""
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def last_days(days: int, now: float | None = None) -> Span:
    """The ``days`` days that end today."""
    today = time.time() if now is None else now
    return Span(day_of(today - (days - 1) * DAY_S), day_of(today))


def span(first: str, last: str, vos: Sequence[str] = ()) -> Span:
    """A checked span. Raises BadRequest."""
    for day in (first, last):
        try:
            _unix(day)
        except ValueError:
            raise BadRequest(f"not a day: {day!r}; write 2026-01-31") from None
    if first > last:
        raise BadRequest(f"{first} is after {last}")
    return Span(first, last, tuple(vos))


def gathered(config: Config, wanted: Span) -> list[Usage]:
    """The rows of all services of this machine."""
    if not (config.runtime.database or config.runtime.state.is_dir()):
        return []  # nothing ran here yet; opening would make directories, as the wrong user
    return [row for point in entry_points(group="edged.usage") for row in point.load()(config, wanted)]


def summed(rows: Iterable[Usage], by: Sequence[str]) -> list[Usage]:
    """The rows added up over everything that is not in ``by`` (words of ``GROUPS``), sorted."""
    groups: dict[tuple[str, ...], dict[str, float | None]] = {}
    for row in rows:
        sums = groups.setdefault(tuple(getattr(row, word) for word in by), dict.fromkeys(SUMS))
        for name in SUMS:
            value = getattr(row, name)
            if value is not None:
                sums[name] = (sums[name] or 0) + value
    return [_row(dict(zip(by, key, strict=True)), groups[key]) for key in sorted(groups)]


def _row(words: dict[str, str], sums: dict[str, float | None]) -> Usage:
    known = {name: value for name, value in sums.items() if value is not None}
    return msgspec.convert({"day": "", "vo": "", **words, **known}, Usage, strict=False)


def figures(row: Usage) -> dict[str, float | int | None]:
    """A row as people read it: hours, ratios, bytes."""
    return {
        "jobs": row.jobs,
        "finished": row.finished,
        "cpu_h": row.cpu_allocated_s / HOUR_S,
        "cpu_measured_h": row.cpu_measured_s / HOUR_S,
        "cpu_used_h": None if row.cpu_used_s is None else row.cpu_used_s / HOUR_S,
        "cpu_efficiency": row.cpu_efficiency,
        "gpu_h": row.gpu_allocated_s / HOUR_S,
        "gpu_measured_h": row.gpu_measured_s / HOUR_S,
        "gpu_used_h": None if row.gpu_used_s is None else row.gpu_used_s / HOUR_S,
        "gpu_efficiency": row.gpu_efficiency,
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
    }


def as_json(rows: Iterable[Usage], by: Sequence[str]) -> str:
    """One object a row; null is 'not measured'."""
    found = [{**{word: getattr(row, word) for word in by}, **figures(row)} for row in rows]
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()


def as_csv(rows: Iterable[Usage], by: Sequence[str]) -> str:
    """With a header line; an empty cell is 'not measured'. No cell is a formula to a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*by, *COLUMNS])
    for row in rows:
        shown = figures(row)
        writer.writerow(
            [_cell(getattr(row, word)) for word in by] + [_plain(shown[name]) for name in COLUMNS]
        )
    return out.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and text else text


def _plain(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def as_table(rows: Sequence[Usage], by: Sequence[str]) -> str:
    """Aligned columns for a terminal."""
    lines = [[*by, *SHOWN]]
    for row in rows:
        shown = figures(row)
        lines.append([getattr(row, word) or "-" for word in by] + [readable(n, shown[n]) for n in SHOWN])
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return "\n".join(_aligned(line, widths, words=len(by)) for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int], *, words: int) -> str:
    """Words to the left, figures to the right."""
    left = [cell.ljust(width) for cell, width in zip(line[:words], widths, strict=False)]
    right = [cell.rjust(width) for cell, width in zip(line[words:], widths[words:], strict=True)]
    return "  ".join([*left, *right]).rstrip()


def readable(name: str, value: float | None) -> str:
    """One figure of ``figures`` in words."""
    if value is None:
        return NOT_MEASURED
    if name.endswith("efficiency"):
        return f"{value:.0%}"
    if name.startswith("bytes"):
        return size(value)
    return f"{value:.1f}" if name.endswith("_h") else f"{value:.0f}"


def size(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


_WRITERS: dict[str, Callable[[Sequence[Usage], Sequence[str]], str]] = {
    "table": as_table,
    "csv": as_csv,
    "json": as_json,
}


@click.command()
@CONFIG
@click.option("--vo", "vos", multiple=True, metavar="VO", help="Only this VO; may be given again.")
@click.option("--from", "first", metavar="DAY", help="First UTC day, e.g. 2026-01-01. Default: 30 days ago.")
@click.option("--to", "last", metavar="DAY", help="Last UTC day, itself included. Default: today.")
@click.option("--by", default="vo", show_default=True, help=f"Comma-separated: {', '.join(GROUPS)}.")
@click.option("--format", "form", type=click.Choice(list(_WRITERS)), default="table", show_default=True)
def usage(  # noqa: PLR0917 - click passes by name
    config_file: Path, vos: tuple[str, ...], first: str, last: str, by: str, form: str
) -> None:
    """What was used: jobs, CPU and GPU hours, efficiency as measured, bytes in and out."""
    from edged import config as configuration

    config = configuration.load(config_file)
    usual = last_days(30)
    words = tuple(filter(None, (word.strip() for word in by.split(","))))
    if unknown := [word for word in words if word not in GROUPS]:
        raise BadRequest(f"--by: no such word {unknown[0]!r}; there are {', '.join(GROUPS)}")
    rows = gathered(config, span(first or usual.first, last or usual.last, vos))
    click.echo(_WRITERS[form](summed(rows, words), words).rstrip("\n"))
