"""What all services of this edge say, gathered every few seconds: the page is written from memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec

from edged import peers
from edged.config import Config
from edged.config.portal import Portal
from edged.logs import get_logger, rfc3339
from edged.peers import Peer, Readiness
from edged.summary import JobCount, Partition, Summary
from edged.usage import Usage
from services.portal import audit
from services.portal.readings import Readings

log = get_logger("services.portal.figures")

REFUSALS_S = 86400.0
REFUSALS_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One round of asking. ``at``: Unix seconds; ``refusals``: (what, reason) → count of the last day."""

    at: float = 0.0
    processes: list[Readiness] = field(default_factory=list)
    jobs: list[JobCount] = field(default_factory=list)
    partitions: list[Partition] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    readings: Readings = field(default_factory=Readings)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)


class Figures:
    """Keeps ``now`` fresh while it runs."""

    name = "portal-figures"

    def __init__(self, config: Config, settings: Portal) -> None:
        self.now = Snapshot()
        self._config = config
        self._settings = settings

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with peers.session() as session:
            task = tasks.create_task(self._forever(session), name=self.name)
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _forever(self, session: aiohttp.ClientSession) -> None:
        while True:
            self.now = await self.gathered(session)
            # alone in a process with the others it starts before they all listen: look again soon
            young = any(found.answered is None for found in self.now.processes)
            await asyncio.sleep(min(1.0, self._settings.refresh_s) if young else self._settings.refresh_s)

    async def gathered(self, session: aiohttp.ClientSession) -> Snapshot:
        """Ask everybody at once. Who does not answer is shown as such."""
        wanted = await asyncio.to_thread(peers.configured, self._config)
        processes = await asyncio.gather(*(peers.readiness(session, peer) for peer in wanted))
        summaries = await asyncio.gather(*(_summaries(session, peer) for peer in wanted))
        pages = await asyncio.gather(*(peers.ask(session, peer, "/metrics") for peer in wanted))
        readings = await asyncio.to_thread(_read, [page for page in pages if page is not None])
        refusals, troubles = await asyncio.to_thread(self._refusals)
        told = [summary for group in summaries for summary in group]
        return Snapshot(
            at=time.time(),
            processes=list(processes),
            jobs=[count for summary in told for count in summary.jobs],
            partitions=[one for summary in told for one in summary.partitions],
            drained=[queue for summary in told for queue in summary.drained],
            usage=[row for summary in told for row in summary.usage],
            readings=readings,
            refusals=refusals,
            troubles=[*troubles, *(trouble for summary in told for trouble in summary.troubles)],
        )

    def _refusals(self) -> tuple[Counter[tuple[str, str]], list[str]]:
        places = audit.files(self._config)
        return audit.refusals(places, rfc3339(time.time() - REFUSALS_S), limit=REFUSALS_BYTES)


async def _summaries(session: aiohttp.ClientSession, peer: Peer) -> list[Summary]:
    raw = await peers.ask(session, peer, "/summary")
    try:
        return list(msgspec.json.decode(raw, type=dict[str, Summary]).values()) if raw is not None else []
    except msgspec.MsgspecError as error:  # an older or newer process beside us, during an upgrade
        log.warning("summary not understood", extra={"process": peer.name, "reason": str(error)})
        return []


def _read(pages: list[bytes]) -> Readings:
    readings = Readings()
    for page in pages:
        readings.add(page.decode("utf-8", "replace"))
    return readings
