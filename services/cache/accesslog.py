"""The access log: one JSON line per request, collected in memory and written by a thread.

A hit's line is three pieces of bytes put together; what comes from the client in them was escaped once,
when its request line was first seen.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from services.cache.traffic import Outcome

_PERIOD_S = 0.5
_MAX_LINES = 200_000  # waiting for a disk that does not take them; then lines are dropped and counted

_text = msgspec.json.Encoder().encode


def _split(line: bytes) -> tuple[str, str]:
    method, _, rest = line.partition(b" ")
    return method.decode("latin-1"), rest.rpartition(b" ")[0].decode("latin-1")


def hot_text(line: bytes, size: int, outcome: Outcome) -> bytes:
    """The constant end of a hit's log line."""
    method, url = _split(line)
    return b'","method":%b,"url":%b,"status":200,"bytes":%d,"outcome":"%b"}\n' % (
        _text(method),
        _text(url),
        size,
        outcome.encode(),
    )


class AccessLog:
    """Lines go to ``file``, reopened when it was moved away (logrotate). Without a file nothing is kept."""

    def __init__(self, file: Path | None, disk: Executor) -> None:
        self.wanted = file is not None
        self._file = file
        self._disk = disk
        self._lines: list[bytes] = []
        self._fd = -1
        self._moment = -1
        self._stamp = b""
        self.dropped = 0

    def hit(self, now: float, peer: bytes, text: bytes) -> None:
        """A hit. ``peer`` and ``text`` are ready-made JSON pieces."""
        moment = int(now * 1000)
        if moment != self._moment:  # many hits share a millisecond
            self._moment = moment
            self._stamp = b'{"time":%d.%03d,"client":"' % divmod(moment, 1000)
        self._lines.append(self._stamp + peer + text)

    def request(  # noqa: PLR0917 - the fields of a line, in its order
        self, now: float, peer: bytes, line: bytes, status: int, sent: int, outcome: Outcome, seconds: float
    ) -> None:
        """Any other request; status 0: closed without an answer."""
        if not self.wanted:
            return
        method, url = _split(line)
        entry = (
            b'{"time":%.3f,"client":"%b","method":%b,"url":%b,'
            b'"status":%d,"bytes":%d,"outcome":"%b","seconds":%.4f}\n'
        )
        self._lines.append(
            entry % (now, peer, _text(method), _text(url), status, sent, outcome.encode(), seconds)
        )

    async def write(self) -> None:
        """For ever: write what was collected."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self.flush()

    async def flush(self) -> None:
        """Write now."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        if len(lines) > _MAX_LINES:
            self.dropped += len(lines) - _MAX_LINES
            del lines[_MAX_LINES:]
        await asyncio.get_running_loop().run_in_executor(self._disk, self._append, lines)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, lines: list[bytes]) -> None:
        assert self._file is not None
        try:
            if self._fd < 0 or not self._same():
                self.close()
                self._fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            os.write(self._fd, b"".join(lines))
        except OSError:  # a full disk must not stop the service
            self.dropped += len(lines)

    def _same(self) -> bool:
        assert self._file is not None
        try:
            there, mine = self._file.stat(), os.fstat(self._fd)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
