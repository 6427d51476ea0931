"""The ``local`` driver: real processes of the account on this machine, each with a supervisor of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from edged.accounts.api import Batch, BatchVerb
from edged.errors import Conflict, Unavailable, UnknownOutcome
from services.jobs.batch.local import verbs
from services.jobs.batch.local.facts import CLUSTER
from services.jobs.batch.protocol import (
    NAME_PREFIX,
    BatchJob,
    BatchRef,
    PartitionState,
    Refused,
    SiteState,
    Submission,
    Submitted,
    Sweep,
)

if TYPE_CHECKING:
    from edged.config.jobs import Jobs

_decode = msgspec.json.Decoder(BatchJob).decode


class Local:
    """This machine. See ``protocol.BatchSystem`` for what each call promises."""

    name = "local"

    def __init__(self, config: Jobs, accounts: Batch) -> None:
        self._accounts = accounts
        self._deadline_s = config.client_deadline_s

    async def submit(self, grant: bytes, submission: Submission) -> Submitted:
        if why := impossible(submission):
            raise Refused(why)
        verb = verbs.Start(job=submission.job, submission=submission, deadline_s=self._deadline_s)
        try:
            job: BatchJob | None = await self._accounts.perform(
                grant,
                verb,
                BatchJob | None,  # type: ignore[arg-type]
                deadline_s=self._deadline_s + 10,
            )
        except (Unavailable, Conflict) as error:
            raise UnknownOutcome("it is not known whether the job was started", detail=str(error)) from error
        if job is None:
            raise UnknownOutcome("no supervisor took the job")
        return Submitted(job.ref)

    async def find(self, grant: bytes, job: str, since: float) -> Sequence[BatchJob]:
        return await self._accounts.perform(
            grant, verbs.Look(jobs=(job,)), list[BatchJob], deadline_s=self._deadline_s
        )

    async def sees_all(self, grant: bytes) -> bool:
        return False

    async def sweep(self, grant: bytes, accounts: Sequence[str] = ()) -> Sweep:
        listed = await self._accounts.perform(grant, verbs.List(), verbs.Listed, deadline_s=self._deadline_s)
        return Sweep(listed.taken_at, frozenset(listed.records), _decode)

    async def finals(self, grant: bytes, refs: Sequence[BatchRef]) -> Sequence[BatchJob]:
        names = tuple(ref.name.removeprefix(NAME_PREFIX) for ref in refs)
        verb = verbs.Look(jobs=names)
        found = await self._accounts.perform(grant, verb, list[BatchJob], deadline_s=self._deadline_s)
        wanted = {(ref.name, ref.id) for ref in refs}
        return [job for job in found if (job.ref.name, job.ref.id) in wanted]

    async def cancel(self, grant: bytes, ref: BatchRef) -> None:
        verb = verbs.Cancel(job=ref.name.removeprefix(NAME_PREFIX))
        await self._accounts.perform(grant, verb, type(None), deadline_s=self._deadline_s)

    async def site(self, grant: bytes) -> SiteState:
        machine = await self._accounts.perform(
            grant, verbs.Machine(), PartitionState, deadline_s=self._deadline_s
        )
        return SiteState(taken_at=time.time(), cluster=CLUSTER, version="", partitions=(machine,))


def impossible(submission: Submission) -> str:
    """Why one machine without a scheduler cannot do it, or nothing."""
    if submission.nodes > 1:
        return "the local batch system has one node"
    if submission.gpus is not None or submission.gres:
        return "the local batch system has no GPUs and no other GRES"
    if submission.mpi:
        return "the local batch system starts no MPI"
    if submission.reservation or submission.constraint:
        return "the local batch system has no reservations and no constraints"
    return ""


class LocalDriver:
    """What the entry point names."""

    name = "local"
    verbs: tuple[type[BatchVerb], ...] = (verbs.Start, verbs.List, verbs.Look, verbs.Cancel, verbs.Machine)

    def create(self, config: Jobs, accounts: Batch) -> Local:
        """The batch system of this machine."""
        return Local(config, accounts)


DRIVER = LocalDriver()
