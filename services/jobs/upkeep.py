"""What the engine does by the clock: clean what was kept long enough, give up on inputs, write what was not written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from edged.errors import EdgeError
from edged.lifecycle import Background
from edged.logs import get_logger
from services.jobs import journal
from services.jobs.credentials import Credentials
from services.jobs.model import Job
from services.jobs.registry import Registry
from services.jobs.reporting import Reporting

log = get_logger("edged.jobs")

HOUSEKEEPING_S = 60.0
WRITE_AGAIN_S = 2.0


class Upkeep:
    """``inputs_s``: how long inputs are awaited. ``push`` tells the pipeline of a job, ``clean`` removes one."""

    def __init__(
        self,
        registry: Registry,
        credentials: Credentials,
        reporting: Reporting,
        *,
        inputs_s: float,
        push: Callable[[Job], None],
        clean: Callable[[Job], Awaitable[None]],
    ) -> None:
        self._registry = registry
        self._credentials = credentials
        self._reporting = reporting
        self._inputs_s = inputs_s
        self._push = push
        self._clean = clean

    def start(self, tasks: Background) -> None:
        """Begin; with the usage that a kill kept from being written."""
        tasks.create_task(self._keep_house())
        tasks.create_task(self._keep_the_journal())

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            now = time.time()
            for job in self._registry:
                if job.state.final and (job.ended_at or now) + job.keep_s < now:
                    await self._clean_quietly(job)
                elif job.missing and job.created_at + self._inputs_s < now:
                    self._push(job)
            await self._sweep_credentials()

    async def _clean_quietly(self, job: Job) -> None:
        try:
            await self._clean(job)
        except EdgeError as error:
            log.warning("expired job not cleaned", extra={"job": job.id, "reason": str(error)})

    async def _sweep_credentials(self) -> None:
        used = frozenset(job.delegation for job in self._registry if job.delegation and not job.state.final)
        try:
            await self._credentials.sweep(used)
        except EdgeError as error:
            log.warning("expired delegations not removed", extra={"reason": str(error)})

    async def _keep_the_journal(self) -> None:
        """What it could not take: a job told to have ended must not begin anew after a restart."""
        late: Iterable[Job] = self._registry
        while True:
            with suppress(EdgeError):
                await self._account(late)
                late = ()
                late = await self._registry.write_again()
            await asyncio.sleep(WRITE_AGAIN_S)

    async def _account(self, jobs: Iterable[Job]) -> None:
        """Write what ended jobs used where it is missing."""
        ended = {journal.usage_key(job): job for job in jobs if job.state.final}
        if not ended:
            return
        written = await self._registry.store.read(lambda c: journal.accounted(c, list(ended)))
        for key in ended.keys() - written:
            try:
                await self._reporting.used(ended[key])
            except Exception:  # a fault of ours with what one job wrote must not stop all others
                log.exception("usage not written", extra={"job": key})
