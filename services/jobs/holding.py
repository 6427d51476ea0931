"""Jobs held back: for another job's end, or for room in their array. Who ended tells who may go on."""

from __future__ import annotations

from collections import defaultdict

from edged.identity.words import JobId
from services.jobs.model import Job


class Holding:
    """Held jobs, by what releases them. A job that waits for inputs is not here: its upload pushes it."""

    def __init__(self) -> None:
        self._after: defaultdict[str, dict[JobId, None]] = defaultdict(dict)  # dicts keep the order
        self._arrays: defaultdict[str, dict[JobId, None]] = defaultdict(dict)

    def hold_after(self, job: Job, other: str) -> None:
        """Until the job ``other`` has ended."""
        self._after[other][job.id] = None

    def hold_in_array(self, job: Job) -> None:
        """Until an element of its array has ended."""
        self._arrays[job.array][job.id] = None

    def released_by(self, ended: Job) -> list[JobId]:
        """Those that may go on now: all that waited for this job, and one element of its array.

        An element that was held and has ended itself (cancelled) took up no room, but it may have been
        the one that an earlier end released: the next one gets its turn.
        """
        released = list(self._after.pop(ended.id, ()))
        if (waiting := self._arrays.get(ended.array)) is not None:
            waiting.pop(ended.id, None)
            if waiting:
                released.append(next(iter(waiting)))
                del waiting[released[-1]]
            if not waiting:
                del self._arrays[ended.array]
        return released
