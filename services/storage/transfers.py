"""Transfers that run: counted, cut when stalled, closed within a second when their subject is banned."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from edged import metrics
from edged.identity.words import Principal
from edged.logs import get_logger

log = get_logger("edged.storage.transfers")

ACTIVE = metrics.gauge("storage_transfers", "Transfers running now.", ("kind", "vo"))
BYTES = metrics.counter("storage_bytes", "Bytes of file contents moved.", ("kind", "vo"))
CUT = metrics.counter("storage_transfers_cut", "Transfers we broke off.", ("why",))

SWEEP_S = 5.0

Who = tuple[str, str, str]  # VO, account, kind of transfer


class Transfer:
    """One running transfer. Whoever moves its bytes adds them to ``moved``."""

    __slots__ = (
        "_abort",
        "_seen",
        "_still",
        "account",
        "booked",
        "cut",
        "kind",
        "moved",
        "principal",
        "watched",
    )

    def __init__(self, kind: str, principal: Principal, account: str, abort: Callable[[], object]) -> None:
        self.kind = kind
        self.principal = principal
        self.account = account
        self.moved = 0
        self.booked = 0  # of them, those already counted as used
        self.cut = ""
        self.watched = True
        self._abort = abort
        self._seen = 0
        self._still = 0.0

    def abort(self, why: str) -> None:
        """Break it off."""
        self.cut = why
        CUT.labels(why).inc()
        log.info("transfer cut", extra={"kind": self.kind, "why": why, **self.principal.for_log()})
        self._abort()

    def stalled_for(self, period_s: float) -> float:
        """Called once a period: for how long not a byte has moved."""
        if self.moved != self._seen:
            self._seen, self._still = self.moved, 0.0
        else:
            self._still += period_s
        return self._still


class Transfers:
    """All running transfers of this process."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._running: set[Transfer] = set()
        self._used: Counter[Who] = Counter()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Transfer]:
        return iter(tuple(self._running))

    @contextmanager
    def running(
        self,
        kind: str,
        principal: Principal,
        account: str,
        abort: Callable[[], object],
        *,
        watch: bool = True,
    ) -> Iterator[Transfer]:
        """Count one from here to the end of the block. ``abort`` must make the block end.

        ``watch``: cut it when it stalls; copies between servers have their own clocks.
        """
        transfer = Transfer(kind, principal, account, abort)
        transfer.watched = watch
        gauge = ACTIVE.labels(kind, principal.vo)
        self._running.add(transfer)
        gauge.inc()
        try:
            yield transfer
        finally:
            self._running.discard(transfer)
            gauge.dec()
            BYTES.labels(kind, principal.vo).inc(max(transfer.moved, 0))
            self._book(transfer)

    def brief(self, kind: str, vo: str, account: str, count: int) -> None:
        """A transfer too short to be watched. Hot: every small GET."""
        BYTES.labels(kind, vo).inc(count)
        self._used[vo, account, kind] += count

    def take(self) -> Counter[Who]:
        """What was moved since the last call, by those that still run too."""
        for transfer in self._running:
            self._book(transfer)
        taken, self._used = self._used, Counter()
        return taken

    def give_back(self, taken: Counter[Who]) -> None:
        """It could not be written: count it again next time."""
        self._used.update(taken)

    def _book(self, transfer: Transfer) -> None:
        """Bytes that were sent twice, after a break, were used twice."""
        count = transfer.moved - transfer.booked
        transfer.booked = transfer.moved
        if count > 0:
            self._used[transfer.principal.vo, transfer.account, transfer.kind] += count

    def cut(self, covers: Callable[[Principal], bool], _keep_jobs: bool) -> None:
        """A ban came: close everything of whom it covers (IdentityClient.on_ban)."""
        for transfer in self:
            if covers(transfer.principal):
                transfer.abort("banned")

    @asynccontextmanager
    async def watched(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Cut stalled ones for as long as the context is entered."""
        watcher = tasks.create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self) -> None:
        period = min(SWEEP_S, self._stall_s / 2)
        while True:
            await asyncio.sleep(period)
            for transfer in self:
                if transfer.watched and transfer.stalled_for(period) >= self._stall_s:
                    transfer.abort("stalled")
