"""Jobs that ended by the queue's word while accounting was silent: it is asked again, ever less often.

slurmdbd may be down for hours and gets everything when it is back; until then exit code and usage are unknown.
"""

from __future__ import annotations

from collections.abc import Iterable

from edged.identity.words import JobId
from services.jobs.model import Job

FIRST_S = 10.0
AT_MOST_S = 600.0
GIVE_UP_S = 7 * 86400.0


class Late:
    """Whom to ask about, and when."""

    def __init__(self, jobs: Iterable[Job], now: float) -> None:
        self._next: dict[JobId, float] = {job.id: now for job in jobs if job.unaccounted}

    def add(self, job: Job, now: float) -> None:
        """It ended, unaccounted."""
        self._next[job.id] = now + FIRST_S

    def due(self, now: float) -> list[JobId]:
        """Those to ask about now."""
        return [job for job, at in self._next.items() if at <= now]

    def unanswered(self, job: Job, now: float) -> None:
        """Accounting still does not know it: wait as long as it has been silent, within bounds."""
        silent_s = now - (job.ended_at or now)
        if silent_s > GIVE_UP_S:
            self.drop(job.id)
        else:
            self._next[job.id] = now + min(max(silent_s, FIRST_S), AT_MOST_S)

    def drop(self, job: JobId) -> None:
        """Answered, cleaned, or begun again."""
        self._next.pop(job, None)
