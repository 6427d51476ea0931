"""What one source address may do, decided before any token is looked at. Pure but for the clock given."""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict

MAX_SOURCES = 65536


def source_of(address: str) -> str:
    """The unit limits count by: an IPv4 address, or the /64 of an IPv6 address."""
    if ":" not in address:
        return address
    ip = ipaddress.IPv6Address(address.partition("%")[0])
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((ip, 64), strict=False))


class Connections:
    """Open connections, in all and per source."""

    def __init__(self, per_source: int, in_all: int) -> None:
        self.per_source = per_source
        self.in_all = in_all
        self.total = 0
        self._held: Counter[str] = Counter()

    def take(self, source: str) -> bool:
        """Count one more; False when a limit forbids it."""
        if self.total >= self.in_all or self._held[source] >= self.per_source:
            return False
        self.total += 1
        self._held[source] += 1
        return True

    def give(self, source: str) -> None:
        """One less."""
        self.total -= 1
        self._held[source] -= 1
        if self._held[source] <= 0:
            del self._held[source]


class Failures:
    """Failed authentications per source in a sliding minute (two half-weighted buckets, bounded memory)."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._seen: OrderedDict[str, tuple[int, int, int]] = OrderedDict()  # minute, in it, in the one before

    def _now(self, source: str, now: float) -> tuple[int, int, int]:
        minute = int(now // 60)
        was, count, before = self._seen.get(source, (minute, 0, 0))
        if was == minute:
            return minute, count, before
        return minute, 0, count if was == minute - 1 else 0

    def blocked(self, source: str, now: float) -> bool:
        """Whether this source has failed too often lately."""
        if source not in self._seen:
            return False
        _, count, before = self._now(source, now)
        return count + before * (1 - (now % 60) / 60) >= self.per_minute

    def failed(self, source: str, now: float) -> None:
        """Remember one failure."""
        minute, count, before = self._now(source, now)
        self._seen[source] = (minute, count + 1, before)
        self._seen.move_to_end(source)
        if len(self._seen) > MAX_SOURCES:
            self._seen.popitem(last=False)
