"""Queues that the batch system called full: few jobs ask again for all, the others wait behind them.

Ten thousand waiting jobs must not mean ten thousand sbatch a minute. The job that was told "full" asks
again after a while; whoever gets in, or ends and so makes room, lets the next one try.
"""

from __future__ import annotations

from bisect import bisect_left

from edged.identity.words import JobId
from services.jobs.model import Job

Key = tuple[str, str, str]  # batch system, account, queue: what its limits may be on


class Fullness:
    """Jobs that wait for room, oldest first, per batch system, account and queue."""

    def __init__(self) -> None:
        self._until: dict[Key, float] = {}
        self._waiting: dict[Key, list[JobId]] = {}
        self._asking: set[JobId] = set()

    def said(self, job: Job, until: float) -> None:
        """The batch system told this job that it is full; if nothing happens it asks again at ``until``."""
        self._until[_key(job)] = until
        self._wait(job)
        self._asking.add(job.id)

    def holds(self, job: Job, now: float) -> bool:
        """Whether the job must wait its turn; if so it is remembered."""
        if job.id in self._asking:
            self._leave(job)
            return False
        if now >= self._until.get(_key(job), 0.0):
            return False
        self._wait(job)
        return True

    def room(self, job: Job) -> JobId | None:
        """This job got in, or ended: the one that may try now."""
        self._leave(job)
        key = _key(job)
        waiting = self._waiting.get(key)
        if not waiting:
            self._waiting.pop(key, None)
            self._until.pop(key, None)
            return None
        self._asking.add(waiting[0])
        return waiting.pop(0)

    def _wait(self, job: Job) -> None:
        waiting = self._waiting.setdefault(_key(job), [])
        place = bisect_left(waiting, job.id)
        if waiting[place : place + 1] != [job.id]:
            waiting.insert(place, job.id)

    def _leave(self, job: Job) -> None:
        self._asking.discard(job.id)
        waiting = self._waiting.get(_key(job), [])
        place = bisect_left(waiting, job.id)
        if waiting[place : place + 1] == [job.id]:
            del waiting[place]


def _key(job: Job) -> Key:
    return (job.batch, job.account, job.queue)
