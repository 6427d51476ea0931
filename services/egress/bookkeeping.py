"""Taking the accounts to the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edged.errors import EdgeError
from edged.logs import get_logger
from edged.summary import USAGE_DAYS, USAGE_FRESH_S, Kept, Summary
from edged.usage import Usage, last_days
from services.egress import usage
from services.egress.accounts import Accounts
from services.egress.ledger import HOUR_S, Ledger

log = get_logger("services.egress.bookkeeping")


class Bookkeeper:
    """Every ``period_s`` what was counted goes into the store, and once more at the end.

    While the store cannot be written the figures stay in memory and readiness says why.
    """

    name = "egress-accounts"

    def __init__(self, accounts: Accounts, ledger: Ledger, *, period_s: float, keep_s: float) -> None:
        self._accounts, self._ledger = accounts, ledger
        self._period_s, self._keep_s = period_s, keep_s
        self._trouble: str | None = None
        self._usage = Kept(self._ask_usage, USAGE_FRESH_S)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        task = tasks.create_task(self._forever(), name="egress-accounts")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.flush()

    def not_ready(self) -> str | None:
        """Why the accounts cannot be written, or None."""
        return self._trouble

    async def summary(self) -> Summary:
        """Bytes by day, for the portal."""
        try:
            return Summary(usage=await self._usage.get())
        except EdgeError as error:
            return Summary(troubles=[f"usage: {error.message}"])

    async def _ask_usage(self) -> list[Usage]:
        return await self._ledger.store.read(lambda c: usage.rows(c, last_days(USAGE_DAYS)))

    async def flush(self) -> None:
        """Write what was counted so far."""
        figures = self._accounts.take()
        if not figures:
            return
        try:
            await self._ledger.add(figures, time.time())
        except EdgeError as error:
            self._accounts.give_back(figures)
            self._trouble = f"accounts cannot be written: {error.message}"
            log.error("accounts not written", extra={"reason": str(error)})  # noqa: TRY400 - expected, typed
        except BaseException:
            self._accounts.give_back(figures)
            raise
        else:
            self._trouble = None

    async def _forever(self) -> None:
        pruned = 0.0
        while True:
            await asyncio.sleep(self._period_s)
            await self.flush()
            if time.time() - pruned > HOUR_S:
                pruned = time.time()
                await self._prune()

    async def _prune(self) -> None:
        try:
            await self._ledger.forget(time.time() - self._keep_s)
        except EdgeError as error:
            log.warning("old accounts stay", extra={"reason": str(error)})
