"""What passed: one record per repository or destination, plain numbers so that a hit costs nothing."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from enum import StrEnum

from edged.metrics import LATENCY_S


class Outcome(StrEnum):
    """How a request was answered."""

    MEMORY = "memory"
    DISK = "disk"
    MISS = "miss"
    SHARED = "shared"  # joined a fetch under way
    STALE = "stale"
    PASSED = "passed"  # not cacheable
    REVALIDATED = "revalidated"
    FAILED = "failed"
    REFUSED = "refused"
    ABORTED = "aborted"  # the client left


@dataclass(slots=True, eq=False)
class Traffic:
    """Requests by outcome, bytes to clients, and seconds of those that were not answered at once."""

    name: str
    kind: str = "repository"
    memory: int = 0
    disk: int = 0
    bytes: int = 0
    others: dict[Outcome, int] = field(default_factory=dict)
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_S) + 1))

    def count(self, outcome: Outcome, sent: int, seconds: float) -> None:
        """One request that took the long way."""
        self.bytes += sent
        self.others[outcome] = self.others.get(outcome, 0) + 1
        self.buckets[bisect.bisect_left(LATENCY_S, seconds)] += 1
        self.seconds += seconds

    def requests(self) -> dict[Outcome, int]:
        """Requests by outcome."""
        found = dict(self.others)
        found[Outcome.MEMORY] = found.get(Outcome.MEMORY, 0) + self.memory
        found[Outcome.DISK] = found.get(Outcome.DISK, 0) + self.disk
        return found
