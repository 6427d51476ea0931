"""The ``slurm`` driver: the site's own clients, run by the account's batch worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from edged.accounts.api import Batch, BatchVerb
from edged.errors import Busy, Conflict, Unavailable, UnknownOutcome
from services.jobs.batch.protocol import (
    NAME_PREFIX,
    Allocation,
    BatchJob,
    BatchRef,
    PartitionState,
    Refused,
    SiteState,
    Submission,
    Submitted,
    Sweep,
)
from services.jobs.batch.slurm import cancel, listings, queue, submit
from services.jobs.batch.slurm import site as about
from services.jobs.batch.slurm.refusals import Verdict

if TYPE_CHECKING:
    from edged.config.jobs import Jobs

T = TypeVar("T")

_ANSWER_S = 10.0  # for the worker itself, above what its clients may take


class Slurm:
    """One cluster. See ``protocol.BatchSystem`` for what each call promises."""

    name = "slurm"

    def __init__(self, config: Jobs, accounts: Batch) -> None:
        self._accounts = accounts
        self._deadline_s = config.client_deadline_s
        self._cluster: about.Cluster | None = None

    async def submit(self, grant: bytes, submission: Submission) -> Submitted:
        cluster = await self._about(grant)
        verb = submit.Submit(job=submission.job, submission=submission, deadline_s=self._deadline_s)
        try:
            answer = await self._accounts.perform(
                grant, verb, submit.SubmitAnswer, deadline_s=self._deadline_s + _ANSWER_S
            )
        except (Unavailable, Conflict) as error:
            # the worker may have died after sbatch had spoken; or an earlier sbatch is still speaking
            raise UnknownOutcome("it is not known whether Slurm has the job", detail=str(error)) from error
        match answer.verdict:
            case None:
                return Submitted(BatchRef(cluster.name, answer.id, 0.0, submission.name))
            case Verdict.REFUSED:
                raise Refused(answer.words)
            case Verdict.BUSY:
                raise Busy(answer.words, retry_after_s=60.0)
            case Verdict.UNKNOWN:
                raise UnknownOutcome("it is not known whether Slurm has the job", detail=answer.words)

    async def find(self, grant: bytes, job: str, since: float) -> Sequence[BatchJob]:
        cluster = await self._about(grant)
        verb = listings.Find(
            job=job,
            cluster=cluster.name,
            since=since,
            accounting=cluster.accounting,
            deadline_s=self._deadline_s,
        )
        return await self._accounts.perform(
            grant, verb, list[BatchJob], deadline_s=3 * self._deadline_s + _ANSWER_S
        )

    async def sees_all(self, grant: bytes) -> bool:
        cluster = await self._about(grant)
        return (
            cluster.accounting and not cluster.private_jobs
        )  # without accounting, ``finals`` looks at one's own

    async def sweep(self, grant: bytes, accounts: Sequence[str] = ()) -> Sweep:
        cluster = await self._about(grant)
        swept = await self._perform(
            grant, listings.Sweep(accounts=tuple(accounts), deadline_s=self._deadline_s), listings.Swept
        )
        return Sweep(swept.taken_at, frozenset(swept.lines.splitlines()), queue.reader(cluster.name))

    async def finals(self, grant: bytes, refs: Sequence[BatchRef]) -> Sequence[BatchJob]:
        cluster = await self._about(grant)
        if not cluster.accounting:  # slurmctld's memory is all there is, for MinJobAge
            live = {job.ref.id: job for job in (await self.sweep(grant)).jobs()}
            return [live[ref.id] for ref in refs if ref.id in live and live[ref.id].ref.name == ref.name]
        found: list[BatchJob] = []
        for start in range(0, len(refs), listings.Finals.BATCH):
            batch = refs[start : start + listings.Finals.BATCH]
            verb = listings.Finals(ids=tuple(ref.id for ref in batch), deadline_s=self._deadline_s)
            found.extend(latest(batch, await self._perform(grant, verb, list[BatchJob])))
        return found

    async def cancel(self, grant: bytes, ref: BatchRef) -> None:
        job = ref.name.removeprefix(NAME_PREFIX)
        await self._perform(grant, cancel.Cancel(job=job, deadline_s=self._deadline_s), type(None))

    async def site(self, grant: bytes) -> SiteState:
        self._cluster = None  # slurmctld may have been upgraded
        cluster = await self._about(grant)
        partitions = await self._perform(
            grant, about.Partitions(deadline_s=self._deadline_s), list[PartitionState]
        )
        allocations: list[Allocation] = []
        if cluster.accounting:
            allocations = await self._perform(
                grant, about.Allocations(deadline_s=self._deadline_s), list[Allocation]
            )
        return SiteState(
            taken_at=time.time(),
            cluster=cluster.name,
            version=cluster.version,
            partitions=tuple(partitions),
            allocations=tuple(allocations),
        )

    async def addresses(self, grant: bytes, nodes: Sequence[str]) -> Sequence[str]:
        """See ``protocol.KnowsNodes``."""
        verb = about.NodeAddresses(nodes=tuple(nodes), deadline_s=self._deadline_s)
        return await self._perform(grant, verb, list[str])

    async def _about(self, grant: bytes) -> about.Cluster:
        """Asked once. Raises Unavailable while slurmctld does not answer: nothing was done."""
        if self._cluster is None:
            found = await self._perform(grant, about.About(deadline_s=self._deadline_s), about.Cluster)
            if not found.name:
                raise Unavailable("slurmctld told no cluster name")
            self._cluster = found
        return self._cluster

    async def _perform(self, grant: bytes, verb: BatchVerb, result: type[T]) -> T:
        return await self._accounts.perform(grant, verb, result, deadline_s=self._deadline_s + _ANSWER_S)


def latest(refs: Sequence[BatchRef], rows: Sequence[BatchJob]) -> list[BatchJob]:
    """For each ref the newest row that is the same job; rows of others that had its id are left out."""
    wanted = {(ref.id, ref.name) for ref in refs}
    newest: dict[tuple[str, str], BatchJob] = {}
    for row in rows:
        key = (row.ref.id, row.ref.name)
        if key in wanted and (key not in newest or row.ref.submitted_at >= newest[key].ref.submitted_at):
            newest[key] = row
    return list(newest.values())


class SlurmDriver:
    """What the entry point names."""

    name = "slurm"
    verbs: tuple[type[BatchVerb], ...] = (
        submit.Submit,
        listings.Sweep,
        listings.Find,
        listings.Finals,
        cancel.Cancel,
        about.About,
        about.Partitions,
        about.Allocations,
        about.NodeAddresses,
    )

    def create(self, config: Jobs, accounts: Batch) -> Slurm:
        """The batch system that ``config`` describes."""
        return Slurm(config, accounts)


DRIVER = SlurmDriver()
