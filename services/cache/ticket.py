"""One fetch for many processes: who holds the lock on an object's ticket fetches, the others watch.

A ticket is a small file named after the object. The holder writes there how far it is and in which
file; the kernel gives the lock away when the holder dies, and the next watcher takes over.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from edged.errors import EdgeError, NotFound, Upstream, UpstreamTimeout
from services.cache.names import ObjectName

_RECORD = struct.Struct("<BQQ24s")
_UNKNOWN = (1 << 64) - 1


class State(IntEnum):
    """What the holder says."""

    FETCHING = 0
    DONE = 1
    NOT_FOUND = 2
    FAILED = 3
    TIMED_OUT = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """The holder's last word: ``ready`` bytes of the file ``part`` (in the store's parts) may leave."""

    state: State
    size: int | None
    ready: int
    part: str

    def error(self) -> EdgeError:
        """The failure this stands for."""
        match self.state:
            case State.NOT_FOUND:
                return NotFound("no upstream has it")
            case State.TIMED_OUT:
                return UpstreamTimeout("no upstream answered in time")
            case _:
                return Upstream("no upstream gave a good copy")


class Ticket:
    """The lock on one object, held by the process that fetches it."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    def progress(self, part: Path | None, size: int | None, ready: int) -> None:
        """Tell the others how far it is."""
        if part is not None:  # what lives in memory cannot be shared
            self._write(State.FETCHING, size, ready, part.name)

    def finished(self, size: int) -> None:
        """It is in the store."""
        self._end(State.DONE, size)

    def failed(self, error: EdgeError) -> None:
        """It cannot be had."""
        match error:
            case NotFound():
                self._end(State.NOT_FOUND, None)
            case UpstreamTimeout():
                self._end(State.TIMED_OUT, None)
            case _:
                self._end(State.FAILED, None)

    def release(self) -> None:
        """Give the lock back without a word, as death would; harmless after the end."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _end(self, state: State, size: int | None) -> None:
        if self._fd >= 0:
            self._write(state, size, size or 0, "")
            self._path.unlink(missing_ok=True)
            self.release()

    def _write(self, state: State, size: int | None, ready: int, part: str) -> None:
        record = _RECORD.pack(state, _UNKNOWN if size is None else size, ready, part.encode())
        os.pwrite(self._fd, record, 0)


class Watch:
    """A ticket another process holds."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    def look(self) -> Progress | None:
        """The holder's last word; None before its first."""
        data = os.pread(self._fd, _RECORD.size, 0)
        if len(data) < _RECORD.size:
            return None
        state, size, ready, part = _RECORD.unpack(data)
        return Progress(State(state), None if size == _UNKNOWN else size, ready, part.rstrip(b"\0").decode())

    def orphaned(self) -> bool:
        """Whether the holder died without a last word."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)


def take(directory: Path, name: ObjectName) -> Ticket | Watch:
    """The ticket of ``name``: ours to fetch, or another's to watch."""
    path = directory / name.key.replace("/", "")
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Watch(path, fd)
        if _is_at(fd, path):
            os.ftruncate(fd, 0)
            return Ticket(path, fd)
        os.close(fd)  # its holder finished and removed it between our open and our lock


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
