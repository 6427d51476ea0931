"""How many bytes the store holds: a sum over one small file per process, exact without locks.

Each process keeps the lock on its own file and writes only there; what it adds and removes survives
its death and is taken over by the next that gets the file. A full count corrects the drift.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_NUMBER = struct.Struct("<q")
_SLOTS = 256


class Usage:
    """The shared counter in ``directory``; ``add`` from any thread of the owning process."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._fd = self._claim()
        self._mine = _read(self._fd)

    def add(self, count: int) -> None:
        """Bytes stored (negative: removed)."""
        self._mine += count
        os.pwrite(self._fd, _NUMBER.pack(self._mine), 0)

    def total(self) -> int:
        """Bytes in the store, by all processes."""
        found = 0
        for entry in os.scandir(self._directory):
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found += _read(fd)
            finally:
                os.close(fd)
        return max(found, 0)

    def close(self) -> None:
        """Let another process have the slot."""
        os.close(self._fd)

    def _claim(self) -> int:
        for number in range(_SLOTS):
            fd = os.open(self._directory / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
            else:
                return fd
        raise OSError(f"more than {_SLOTS} processes share {self._directory}")


def _read(fd: int) -> int:
    data = os.pread(fd, _NUMBER.size, 0)
    return int(_NUMBER.unpack(data)[0]) if len(data) == _NUMBER.size else 0
