"""Taking the accounts to the ledger, and showing their totals as metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from edged import metrics
from edged.errors import EdgeError
from edged.logs import get_logger
from services.egress.accounts import Accounts
from services.egress.gate import Gate
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


class EgressMetrics(Collector):
    """Computed when scraped: nothing is paid per connection. Labels are words of the configuration."""

    def __init__(self, gate: Gate, accounts: Accounts) -> None:
        self._gate, self._accounts = gate, accounts

    def collect(self) -> Iterator[Metric]:
        moved = CounterMetricFamily(
            "edged_egress_bytes", "Bytes through the gate.", labels=("vo", "destination", "way", "direction")
        )
        for labels, count in self._accounts.bytes.items():
            moved.add_metric([str(word) for word in labels], count)
        yield moved
        ended = CounterMetricFamily(
            "edged_egress_connections", "Connections asked for, by outcome.", labels=("vo", "way", "outcome")
        )
        for by, count in self._accounts.ended.items():
            ended.add_metric([str(word) for word in by], count)
        yield ended
        yield GaugeMetricFamily("edged_egress_tunnels", "Tunnels open now.", value=len(self._gate.tunnels))
        yield GaugeMetricFamily("edged_egress_pipes", "Kernel pipes made.", value=self._gate.pipes.made)


def show(gate: Gate, accounts: Accounts) -> Collector:
    """Register the metrics; the caller unregisters them when it stops."""
    collector = EgressMetrics(gate, accounts)
    metrics.register(collector)
    return collector
