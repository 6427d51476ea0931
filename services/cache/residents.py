"""What is hot: small objects in memory, larger ones as open files, found by the very bytes of a request line.

CLOCK (second chance) stands in for LRU: a hit sets one flag instead of moving a list entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.cache.files import OpenFile
from services.cache.traffic import Traffic

_MAX_LINES = 8  # request lines remembered per resident: clients of several strata ask with several
_OVERHEAD = 1024  # bytes of bookkeeping counted per object in memory


@dataclass(slots=True, eq=False)
class Resident:
    """An answer ready to go. ``head`` ends with ``Age: ``; the age in seconds since ``born`` follows.

    Exactly one of ``body`` and ``file`` is set. ``expires`` (Unix seconds) ends its use without asking.
    """

    key: str
    head: bytes
    size: int
    born: float
    expires: float
    body: bytes | None = None
    file: OpenFile | None = None
    used: bool = False
    touched: float = 0.0
    lines: list[bytes] = field(default_factory=list)
    aged_at: int = -1
    aged_head: bytes = b""

    def aged(self, now: int) -> bytes:
        """The whole head at second ``now``, made once a second."""
        self.aged_at = now
        self.aged_head = self.head + b"%d\r\n\r\n" % max(0, now - int(self.born))
        return self.aged_head

    @property
    def cost(self) -> int:
        """Bytes of memory that count; open files are bounded by their number."""
        return _OVERHEAD + self.size if self.body is not None else 0


@dataclass(slots=True, eq=False)
class Hot:
    """A resident as one request line asks for it: whose traffic it is, and its access log text."""

    resident: Resident
    traffic: Traffic
    log: bytes


class Residents:
    """The hot set of one process, bounded in bytes and in open files."""

    def __init__(self, memory: int, files: int) -> None:
        self.by_line: dict[bytes, Hot] = {}
        self._by_key: dict[str, Resident] = {}
        self._memory = memory
        self._files = files
        self.bytes = 0
        self.open_files = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: str) -> Resident | None:
        """By the object's key."""
        return self._by_key.get(key)

    def add(self, resident: Resident) -> None:
        """Keep it; what was not used lately makes room."""
        self.drop(resident.key)
        self._by_key[resident.key] = resident
        self.bytes += resident.cost
        self.open_files += resident.file is not None
        while self.bytes > self._memory or self.open_files > self._files:
            self._evict()

    def remember(self, line: bytes, hot: Hot) -> None:
        """Answer this request line from ``hot`` from now on."""
        resident = hot.resident
        if self._by_key.get(resident.key) is not resident:
            return
        if line not in resident.lines:
            if len(resident.lines) >= _MAX_LINES:
                self.by_line.pop(resident.lines.pop(0), None)
            resident.lines.append(line)
        self.by_line[line] = hot

    def drop(self, key: str) -> None:
        """Forget one."""
        resident = self._by_key.pop(key, None)
        if resident is None:
            return
        self.bytes -= resident.cost
        self.open_files -= resident.file is not None
        for line in resident.lines:
            self.by_line.pop(line, None)

    def used_since(self, moment: float) -> list[Resident]:
        """Those hit lately whose use was last remembered before ``moment``."""
        return [resident for resident in self._by_key.values() if resident.used and resident.touched < moment]

    def clear(self) -> None:
        """Forget all."""
        for key in list(self._by_key):
            self.drop(key)

    def _evict(self) -> None:
        """Drop the oldest that was not used since it was last looked at."""
        while True:
            key = next(iter(self._by_key))
            resident = self._by_key[key]
            if not resident.used:
                self.drop(key)
                return
            resident.used = False
            self._by_key[key] = self._by_key.pop(key)
