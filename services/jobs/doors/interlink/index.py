"""Which job a pod became, by the virtual node that brought it and the pod's uid. Kept in the jobs' keys."""

from __future__ import annotations

from edged.identity.words import JobId, Verdict
from services.jobs.model import Job
from services.jobs.registry import Registry

PREFIX = "interlink"


def key_of(caller: Verdict, uid: str) -> str:
    """The idempotency key of a pod: nodes of two VOs, or of two accounts, can never meet in one."""
    return f"{PREFIX}:{caller.vo}:{caller.account}:{uid}"


class Index:
    """Pods of all virtual nodes. Filled from the journal at start."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._jobs: dict[str, JobId] = {}

    def load(self) -> None:
        """Once the registry has its jobs."""
        for job in self._registry:
            if job.key.startswith(f"{PREFIX}:"):
                self._jobs[job.key] = job.id

    def holds(self, job: Job) -> bool:
        """Whether the job is a pod."""
        return self._jobs.get(job.key) == job.id

    def add(self, job: Job) -> None:
        """A pod that was accepted."""
        self._jobs[job.key] = job.id

    def find(self, caller: Verdict, uid: str) -> Job | None:
        """The pod's job, if this virtual node brought it and it was not cleaned since."""
        key = key_of(caller, uid)
        found = self._jobs.get(key)
        job = self._registry.get(found) if found is not None else None
        if job is None:
            self._jobs.pop(key, None)
            return None
        # a key is text its submitter chose: a job of another VO, or of somebody else, is not this pod
        mine = (job.owner.issuer, job.owner.subject) == (caller.principal.issuer, caller.principal.subject)
        return job if job.vo == caller.vo and (mine or job.account == caller.account) else None
