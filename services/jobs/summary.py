"""What the engine tells of its work: counts from memory, partitions and usage at most every so often."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from edged.config import Config
from edged.errors import EdgeError
from edged.identity.words import AccountName
from edged.summary import USAGE_DAYS, USAGE_FRESH_S, Kept, Partition, Summary
from edged.usage import Usage, last_days
from services.jobs import usage
from services.jobs.batch.protocol import SiteState
from services.jobs.registry import Registry

SITE_FRESH_S = 30.0

Sites = Callable[[AccountName], Awaitable[Mapping[str, SiteState]]]


class Telling:
    """The engine's ``summary``. ``sites``: what each batch system says of itself, as an account sees it."""

    def __init__(self, config: Config, registry: Registry, sites: Sites) -> None:
        self._registry = registry
        self._sites = sites
        accounts = [config.accounts.poll_account, *(rule.account for rule in config.mappings)]
        self._viewer = next(filter(None, accounts), None)
        self._partitions = Kept(self._ask_partitions, SITE_FRESH_S)
        self._usage = Kept(self._ask_usage, USAGE_FRESH_S)

    async def summary(self, drained: frozenset[str]) -> Summary:
        """Never raises for a batch system or database that does not answer: says so instead."""
        troubles: list[str] = []
        partitions: list[Partition] = []
        rows: list[Usage] = []
        try:
            partitions = await self._partitions.get()
        except EdgeError as error:
            troubles.append(f"partitions: {error.message}")
        try:
            rows = await self._usage.get()
        except EdgeError as error:
            troubles.append(f"usage: {error.message}")
        return Summary(
            jobs=self._registry.tally.counts(),
            partitions=partitions,
            drained=sorted(drained),
            usage=rows,
            troubles=troubles,
        )

    async def _ask_partitions(self) -> list[Partition]:
        if self._viewer is None:
            return []
        states = await self._sites(AccountName(self._viewer))
        return [
            Partition(
                batch=batch,
                name=one.name,
                up=one.up,
                cpus=one.cpus,
                cpus_free=one.cpus_free,
                gpus={gpu.gres: (gpu.total, gpu.free) for gpu in one.gpus},
            )
            for batch, state in states.items()
            for one in state.partitions
        ]

    async def _ask_usage(self) -> list[Usage]:
        return await self._registry.store.read(lambda c: usage.rows(c, last_days(USAGE_DAYS)))
