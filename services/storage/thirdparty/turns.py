"""Whose turn it is: at most so many copies of a VO at once, in all processes of the endpoint together.

The kernel keeps the count. A place is one byte of a file, held by a lock of its open file description
(fcntl(2), F_OFD_SETLK): what a killed process held is free at once, and no process coordinates.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from edged import metrics
from edged.errors import Busy

WAITING = metrics.gauge("storage_copies_waiting", "Third-party copies waiting for their VO's turn.", ("vo",))
LOOK_S = 0.25  # how often the first in line looks whether another process gave a place back

_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


class Places:
    """``count`` places in ``file``, shared by all processes that name it."""

    def __init__(self, file: Path, count: int) -> None:
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._count = count
        self._mine: set[int] = set()

    def take(self) -> int | None:
        """A place of our own, or None when all are taken. Never waits."""
        for place in range(self._count):
            if place not in self._mine and self._lock(fcntl.F_WRLCK, place):
                self._mine.add(place)
                return place
        return None

    def give(self, place: int) -> None:
        """Back to all."""
        self._lock(fcntl.F_UNLCK, place)
        self._mine.discard(place)

    def close(self) -> None:
        """All of ours go back."""
        os.close(self._fd)

    def _lock(self, kind: int, place: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
        except BlockingIOError:
            return False
        return True


class _Line:
    """Those of one VO in this process; the first looks for a place, the others wait behind."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.first = asyncio.Lock()
        self.given = asyncio.Event()

    async def place(self) -> int:
        async with self.first:
            while (place := self.places.take()) is None:
                self.given.clear()
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self.given.wait()
                except TimeoutError:
                    continue
            return place

    def give(self, place: int) -> None:
        self.places.give(place)
        self.given.set()


class Turns:
    """``per_vo`` at once, ``waiting`` more in all. ``directory`` is shared by the processes."""

    def __init__(self, directory: Path, *, per_vo: int, waiting: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._per_vo = per_vo
        self._room = Places(directory / "waiting", waiting)
        self._lines: dict[str, _Line] = {}

    def close(self) -> None:
        """Give everything back."""
        self._room.close()
        for line in self._lines.values():
            line.places.close()

    @asynccontextmanager
    async def turn(self, vo: str) -> AsyncIterator[None]:
        """Inside it is a copy of ``vo``'s turn. Raises Busy when too many wait already."""
        line = self._lines.get(vo)
        if line is None:
            line = self._lines[vo] = _Line(Places(self._directory / f"vo-{vo}", self._per_vo))
        place = None if line.first.locked() else line.places.take()
        if place is None:
            place = await self._wait(vo, line)
        try:
            yield
        finally:
            line.give(place)

    async def _wait(self, vo: str, line: _Line) -> int:
        chair = self._room.take()
        if chair is None:
            raise Busy("503 too many copies are waiting here, try later")
        try:
            with WAITING.labels(vo).track_inprogress():
                return await line.place()
        finally:
            self._room.give(chair)
