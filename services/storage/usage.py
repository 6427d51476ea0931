"""Who moved how many bytes: tallied in memory, kept in one small file a day, shown by ``edged usage``.

A file, and no database, because every process of the endpoint appends to it (O_APPEND, one write a line)
and nothing of it is ever changed. What a killed process had not yet written, at most PERIOD_S of it, is lost.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from edged.config import Config
from edged.logs import get_logger
from edged.summary import USAGE_DAYS, USAGE_FRESH_S, Kept, Summary
from edged.usage import DAY_S, Span, Usage, day_of, last_days
from services.storage.transfers import Transfers

log = get_logger("edged.storage.usage")

PERIOD_S = 10.0
KEEP_DAYS = 800
IN, OUT = frozenset({"write", "tpc-pull"}), frozenset({"read", "tpc-push"})


class Moved(NamedTuple):
    """Bytes of one account. ``came``: into this site's files; ``went``: out of them."""

    vo: str
    account: str
    came: int
    went: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Moved).decode


class DayFiles:
    """``<directory>/2026-01-31``: a line for each account, by whoever has something to add."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, day: str, rows: Iterable[Moved]) -> None:
        """Append. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        lines = b"".join(_encode(row) + b"\n" for row in rows)
        fd = os.open(self._directory / day, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, lines)
        finally:
            os.close(fd)

    def rows(self, span: Span) -> Iterator[Usage]:
        """Sums by day, VO and account."""
        for day in _days(span):
            sums: dict[tuple[str, str], tuple[int, int]] = {}
            for row in self._of(day):
                came, went = sums.get((row.vo, row.account), (0, 0))
                sums[row.vo, row.account] = came + row.came, went + row.went
            for (vo, account), (came, went) in sums.items():
                if not span.vos or vo in span.vos:
                    yield Usage(day=day, vo=vo, account=account, bytes_in=came, bytes_out=went)

    def shrink(self, today: str) -> None:
        """One line for each account in files nobody adds to any more; very old ones go."""
        for file in list(self._directory.glob("????-??-??")):
            age = Span(file.name, today)
            if age.ends - age.begins > KEEP_DAYS * DAY_S:
                file.unlink()
            elif age.ends - age.begins == 3 * DAY_S:  # today, yesterday, and this
                rows = [
                    Moved(row.vo, row.account, row.bytes_in, row.bytes_out)
                    for row in self.rows(Span(file.name, file.name))
                ]
                partial = file.with_suffix(".new")
                partial.write_bytes(b"".join(_encode(row) + b"\n" for row in rows))
                partial.replace(file)

    def _of(self, day: str) -> Iterator[Moved]:
        try:
            lines = (self._directory / day).read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                yield _decode(line)
            except msgspec.MsgspecError:  # torn by a full disk
                continue


def _days(span: Span) -> Iterator[str]:
    moment = span.begins
    while moment < span.ends:
        yield day_of(moment)
        moment += DAY_S


class Bookkeeper:
    """Takes what the transfers of this process moved to the day's file; ``tends``: also shrinks old ones."""

    name = "storage-usage"

    def __init__(self, transfers: Transfers, files: DayFiles, *, tends: bool) -> None:
        self._transfers = transfers
        self._files = files
        self._tends = tends
        self._trouble: str | None = None
        self._usage = Kept(self._ask, USAGE_FRESH_S)

    def not_ready(self) -> str | None:
        """Why nothing can be written, or None; it is kept in memory until it can."""
        return self._trouble

    async def summary(self) -> Summary:
        """For the portal. Only one process tells, because the files are of all."""
        return Summary(usage=await self._usage.get() if self._tends else [])

    async def _ask(self) -> list[Usage]:
        return await asyncio.to_thread(lambda: list(self._files.rows(last_days(USAGE_DAYS))))

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Write every PERIOD_S, and at the end."""
        writing = tasks.create_task(self._forever())
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await self.flush()

    async def flush(self) -> None:
        """Write what was moved so far."""
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        taken = self._transfers.take()
        for (vo, account, kind), count in taken.items():
            came, went = sums.get((vo, account), (0, 0))
            sums[vo, account] = came + count * (kind in IN), went + count * (kind in OUT)
        rows = [
            Moved(vo, account, came, went) for (vo, account), (came, went) in sums.items() if came or went
        ]
        if not rows:
            return
        try:
            await asyncio.to_thread(self._files.add, day_of(time.time()), rows)
        except OSError as error:
            self._transfers.give_back(taken)
            self._trouble = f"usage cannot be written: {error.strerror}"
            log.error("usage not written", extra={"reason": str(error)})  # noqa: TRY400 - expected
        else:
            self._trouble = None

    async def _forever(self) -> None:
        shrunk = ""
        while True:
            await asyncio.sleep(PERIOD_S)
            await self.flush()
            today = day_of(time.time())
            if self._tends and today != shrunk and self._trouble is None:
                shrunk = today
                await asyncio.to_thread(self._files.shrink, today)


def files_of(config: Config) -> DayFiles:
    """Where this site keeps them."""
    return DayFiles(config.runtime.state / "storage" / "usage")


def records(config: Config, span: Span) -> Iterable[Usage]:
    """Entry point of group ``edged.usage``."""
    return files_of(config).rows(span) if config.storage is not None else ()
