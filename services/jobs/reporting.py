"""What others are told of a job: identity where it runs and that it ended, the site's accounts what it used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from edged.errors import EdgeError
from edged.identity.client import Verdicts
from edged.logs import get_logger
from edged.state import Store
from services.jobs import gpus, journal
from services.jobs.batch.protocol import BatchSystem, KnowsNodes
from services.jobs.gpus import GpuUse
from services.jobs.model import Job
from services.jobs.registry import Registry
from services.jobs.sessions import Sessions

log = get_logger("edged.jobs")


class Reporting:
    """Each call is one attempt; what fails is logged, for nobody waits for it."""

    def __init__(
        self,
        identity: Verdicts,
        store: Store,
        registry: Registry,
        sessions: Sessions,
        batches: Mapping[str, BatchSystem],
    ) -> None:
        self._identity = identity
        self._store = store
        self._registry = registry
        self._sessions = sessions
        self._batches = batches

    async def runs(self, job: Job) -> None:
        """Tell identity where it runs: its token counts there only."""
        await self._report(job, (*job.nodes, *await self._addresses(job)), ended=False)

    async def ended(self, job: Job) -> None:
        """Tell identity that its token counts no more."""
        await self._report(job, job.nodes, ended=True)

    async def used(self, job: Job) -> None:
        """Write what an ended job used; again, when accounting told it late."""
        need = job.resources
        cards = need.gpus.count * need.nodes if need.gpus else 0
        kind = need.gpus.kind if need.gpus else ""
        cpus = int(job.tres.get("cpu", "0") or 0) or need.tasks * need.cpus_per_task
        use = await self._gpu_use(job, cards * journal.wall_s(job)) if cards else None
        try:
            await self._store.write(journal.record_usage(job, cpus, cards, kind, use))
        except EdgeError as error:
            log.error("usage not written", extra={"job": job.id, "reason": str(error)})  # noqa: TRY400

    async def _report(self, job: Job, nodes: Sequence[str], *, ended: bool) -> None:
        try:
            await self._identity.report_job(job.id, tuple(nodes), ended=ended)
        except EdgeError as error:
            log.warning("job not reported to identity", extra={"job": job.id, "reason": str(error)})

    async def _addresses(self, job: Job) -> Sequence[str]:
        """Where the batch system reaches the job's nodes; without its answer their names must do."""
        batch = self._batches[job.batch]
        if not isinstance(batch, KnowsNodes):
            return ()
        try:
            return await batch.addresses(self._registry.grant(job.id), job.nodes)
        except EdgeError as error:
            log.warning("addresses of nodes not told", extra={"job": job.id, "reason": str(error)})
            return ()

    async def _gpu_use(self, job: Job, allocated_s: float) -> GpuUse | None:
        """As the sampler beside the payload told it, else the batch system."""
        content = b""
        with suppress(EdgeError):
            opened = await self._sessions.open_own(self._registry.grant(job.id), job.id, gpus.RESULT.name)
            try:
                content = await opened.read(gpus.MAX_RESULT, 0)
            finally:
                opened.close()
        return gpus.sampled(content, allocated_s) or gpus.by_batch_system(job.gpu_s, allocated_s)
