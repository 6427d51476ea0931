"""What batch systems say of themselves: asked once for all callers who want to know at about the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from edged.errors import EdgeError
from edged.identity.words import AccountName
from services.jobs.batch.protocol import BatchSystem, SiteState

FRESH_S = 10.0

States = dict[str, SiteState]


class Sites:
    """Per account, for accounts may see different things. ``standing``: signs a grant that only polls."""

    def __init__(
        self,
        batches: Mapping[str, BatchSystem],
        standing: Callable[[AccountName], Awaitable[bytes]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batches = batches
        self._standing = standing
        self._clock = clock
        self._known: dict[AccountName, tuple[float, States | EdgeError]] = {}
        self._asking: dict[AccountName, asyncio.Lock] = {}

    async def of(self, account: AccountName) -> States:
        """By name of the batch system, at most ``FRESH_S`` old. Raises EdgeError, which is as fresh."""
        async with self._asking.setdefault(account, asyncio.Lock()):
            at, found = self._known.get(account, (-FRESH_S, {}))
            if self._clock() - at >= FRESH_S:
                found = await self._ask(account)
                self._known[account] = (self._clock(), found)
        if isinstance(found, EdgeError):
            raise found
        return found

    async def _ask(self, account: AccountName) -> States | EdgeError:
        try:
            return {
                name: await batch.site(await self._standing(account)) for name, batch in self._batches.items()
            }
        except EdgeError as error:
            return error
