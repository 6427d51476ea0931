"""Queues that the batch system called full: few jobs ask again for all, the others wait behind them.

Ten thousand waiting jobs must not mean ten thousand sbatch a minute. The job that was told "full" asks
again by its own timer; whoever gets in, or ends and so makes room, lets the next ones try.
"""

from __future__ import annotations

from itertools import islice

from edged.identity.words import JobId
from services.jobs.model import Job

Key = tuple[str, str, str]  # batch system, account, queue: what its limits may be on


class Fullness:
    """Jobs that wait for room, in their order, per batch system, account and queue."""

    def __init__(self) -> None:
        self._until: dict[Key, float] = {}
        self._waiting: dict[Key, dict[JobId, None]] = {}
        self._asking: set[JobId] = set()

    def said(self, job: Job, until: float) -> None:
        """The batch system told this job that it is full; the job itself asks again at ``until``."""
        self._until[_key(job)] = until
        self._asking.add(job.id)

    def holds(self, job: Job, now: float) -> bool:
        """Whether the job must wait its turn; if so it is remembered."""
        key = _key(job)
        if job.id in self._asking:
            self._asking.discard(job.id)
            return False
        if now >= self._until.get(key, 0.0):
            return False
        self._waiting.setdefault(key, {})[job.id] = None
        return True

    def room(self, job: Job, places: int) -> list[JobId]:
        """This job got in or ended: the ids of up to ``places`` that may try now."""
        key = _key(job)
        self._asking.discard(job.id)
        waiting = self._waiting.get(key, {})
        waiting.pop(job.id, None)
        released = list(islice(waiting, places))
        for one in released:
            del waiting[one]
            self._asking.add(one)
        if not waiting:
            self._waiting.pop(key, None)
            self._until.pop(key, None)
        return released


def _key(job: Job) -> Key:
    return (job.batch, job.account, job.queue)
