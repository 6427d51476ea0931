"""Making room: the least recently used files of a sample go first.

Names are hashes, so one of the 256 directories is a fair sample of the whole store. The oldest of a
sample are the oldest of the store but for a few per cent; a small store is one sample. Nothing is
held in memory between two rounds, and nothing but the housekeeping thread waits.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from services.cache.names import ObjectName
from services.cache.store import Store, footprint

_SAMPLE = 1000
_SHARE = 0.10  # of a sample that may go in one round
_LOW = 0.97  # of the limit: eviction goes on until there


@dataclass(frozen=True, slots=True)
class Evicted:
    """What one round did."""

    files: int = 0
    bytes: int = 0


class Evictor:
    """Keeps ``store`` under ``limit`` bytes and the file system above ``reserve`` free bytes."""

    def __init__(self, store: Store, limit: int, reserve: int) -> None:
        self._store = store
        self._limit = limit
        self._reserve = reserve
        self._next = int.from_bytes(os.urandom(1))
        self._lock = os.open(store.root / "evictor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Release the lock file."""
        os.close(self._lock)

    def needed(self) -> int:
        """Bytes to free, 0 when there is room."""
        over = self._store.usage.total() - self._limit
        short = self._reserve - self._store.free()
        if over <= 0 and short <= 0:
            return 0
        return max(over + int(self._limit * (1 - _LOW)), short)

    def round(self) -> Evicted:
        """Free what is needed, if no other process does. Blocks: a housekeeping thread calls it."""
        goal = self.needed()
        if goal == 0:
            return Evicted()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Evicted()
        try:
            return self._free(goal)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _free(self, goal: int) -> Evicted:
        files = freed = 0
        for _ in range(256 * 4):  # at most four times around: a store of pinned or vanishing files ends it
            sample = self._sample()
            quota = max(1, int(len(sample) * _SHARE))
            for _, path in sample[:quota]:
                got = self._store.remove_file(path)
                files += got > 0
                freed += got
                if freed >= goal:
                    return Evicted(files, freed)
            if not sample:
                break
        return Evicted(files, freed)

    def _sample(self) -> list[tuple[float, str]]:
        """Files with their time of last use, oldest first."""
        found: list[tuple[float, str]] = []
        for _ in range(256):
            found += self._directory(self._next)
            self._next = (self._next + 1) % 256
            if len(found) >= _SAMPLE:
                break
        found.sort()
        return found

    def _directory(self, number: int) -> Iterator[tuple[float, str]]:
        for base in (self._store.objects, self._store.answers):
            for entry in self._store.entries(base, number):
                try:
                    yield entry.stat(follow_symlinks=False).st_mtime, entry.path
                except FileNotFoundError:
                    continue


def count(store: Store) -> tuple[int, int]:
    """Files and bytes by a full walk, which also corrects the running count and fills ``presence``.

    Seconds for a million files: call it in a thread.
    """
    with (store.root / "count.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two that correct the same drift at once would correct it twice
        return _count(store)


def _count(store: Store) -> tuple[int, int]:
    before = store.usage.total()
    files = held = 0
    for base in (store.objects, store.answers):
        for number in range(256):
            for entry in store.entries(base, number):
                try:
                    held += footprint(entry.stat(follow_symlinks=False).st_size)
                    files += 1
                    if base is store.objects:
                        store.presence.add(ObjectName(f"{number:02x}/{entry.name}"))
                except FileNotFoundError:
                    continue
    store.usage.add(held - before)
    store.presence.complete = True
    return files, held
