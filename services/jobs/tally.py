"""How many jobs of which VO are in which queue and state: kept as they move, so that asking costs nothing."""

from __future__ import annotations

from collections import Counter

from edged.summary import JobCount
from services.jobs.model import Job, State


class Tally:
    """Counts of all jobs not yet cleaned."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def moved(self, job: Job, before: State | None, after: State | None) -> None:
        """A job changed its state (None: it did not exist, or is gone)."""
        if before is not None:
            self._counts[job.vo, job.queue, before.value] -= 1
        if after is not None:
            self._counts[job.vo, job.queue, after.value] += 1

    def counts(self) -> list[JobCount]:
        """What there is, sorted."""
        return [JobCount(*key, count) for key, count in sorted(self._counts.items()) if count]
