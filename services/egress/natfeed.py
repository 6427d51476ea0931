"""The front's side of NAT: answers of the DNS to netd, its counters into the accounts."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edged.config.egress import Nat, Way
from edged.egress.names import Names
from edged.egress.outcomes import Outcome
from edged.egress.policy import Asker
from edged.errors import EdgeError
from edged.logs import get_logger
from services.egress.accounts import Accounts
from services.egress.gate import Gate
from services.egress.marks import Marks
from services.egress.netd import messages
from services.egress.netd.client import NetdClient
from services.egress.netd.ruleset import hosts, passings

log = get_logger("services.egress.nat")

_RETRY_S = 5.0
_AT_ONCE = 64
_AGAIN_S = 3600.0  # however long the DNS promises, look once an hour

_Key = tuple[str, str, str, int]


class NatFeed:
    """Looks up what NAT rules name, and reads what NAT counted. netd may come and go."""

    name = "egress-nat"

    def __init__(self, nat: Nat, gate: Gate, names: Names, accounts: Accounts, netd: NetdClient) -> None:
        self._nat, self._gate, self._names = nat, gate, names
        self._accounts, self._netd = accounts, netd
        self._marks: Marks = gate.marks
        self._seen: dict[_Key, messages.Counted] | None = None
        self._refused: dict[tuple[str, str, str, int], int] = {}
        self._trouble: str | None = "netd was not reached yet"

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        mine = [
            tasks.create_task(self._look_up_forever(), name="egress-nat-names"),
            tasks.create_task(self._count_forever(), name="egress-nat-usage"),
        ]
        try:
            yield
        finally:
            for task in mine:
                task.cancel()
            await asyncio.gather(*mine, return_exceptions=True)
            self._netd.close()

    def not_ready(self) -> str | None:
        """Why NAT is not fed, or None."""
        return self._trouble

    # -- names ---------------------------------------------------------------------------------

    async def _look_up_forever(self) -> None:
        due: dict[str, float] = {}
        while True:
            wanted = {host for pair in passings(self._gate.policy) for host in hosts(pair.destination)}
            due = {host: due.get(host, 0.0) for host in wanted}
            ripe = [host for host, when in due.items() if when <= time.monotonic()][:_AT_ONCE]
            for host, again_s in zip(ripe, await asyncio.gather(*map(self._look_up, ripe)), strict=True):
                due[host] = time.monotonic() + again_s
            soonest = min(due.values(), default=time.monotonic() + _RETRY_S)
            await asyncio.sleep(min(max(soonest - time.monotonic(), 0.1), _RETRY_S))

    async def _look_up(self, host: str) -> float:
        """Seconds until it has to be looked up again: before the kernel's element ends."""
        try:
            found = await self._names.resolve(host, fresh=True)
            answer = messages.Answers(host, tuple(str(a) for a in found.addresses[:64]), found.ttl_s)
            await self._netd.ask(answer)
        except EdgeError as error:
            log.warning("name not fed", extra={"host": host, "reason": str(error)})
            return _RETRY_S
        return min(max(found.ttl_s, self._nat.dns_floor_s), _AGAIN_S)

    # -- counters ------------------------------------------------------------------------------

    async def _count_forever(self) -> None:
        while True:
            try:
                await self._count()
                self._trouble = None
            except EdgeError as error:
                self._trouble = f"netd: {error.message}"
            await asyncio.sleep(self._nat.usage_s)

    async def _count(self) -> None:
        """Add what grew since the last reading; the first one only says where to count from."""
        parts = [
            part for part in await self._netd.ask(messages.TakeUsage()) if isinstance(part, messages.Usage)
        ]
        now = {(c.address, c.rule, c.destination, c.job_mark): c for part in parts for c in part.counted}
        before, self._seen = self._seen, now
        refused = {
            (r.source, r.destination, r.protocol, r.port): r.packets for part in parts for r in part.refused
        }
        known, self._refused = self._refused, refused
        if before is None:
            return
        for key, counted in now.items():
            self._add(counted, before.get(key))
        for flow, packets in refused.items():
            self._add_refused(flow[0], packets, known.get(flow, 0))

    def _add(self, now: messages.Counted, before: messages.Counted | None) -> None:
        if before is not None and now.bytes_out >= before.bytes_out and now.bytes_in >= before.bytes_in:
            up, down = now.bytes_out - before.bytes_out, now.bytes_in - before.bytes_in
        else:  # a new element, or one that timed out and began again
            up, down = now.bytes_out, now.bytes_in
        asker = self._asker(now.address, now.job_mark)
        if asker is not None and (up or down):
            self._accounts.of(asker, Way.NAT, now.destination).moved(up, down)

    def _add_refused(self, source: str, now: int, before: int) -> None:
        asker = self._asker(source, 0)
        more = now - before if now >= before else now
        if asker is not None and more:
            self._accounts.of(asker, Way.NAT, "").refused[Outcome.NO_RULE] += more

    def _asker(self, text: str, mark: int) -> Asker | None:
        address = ipaddress.ip_address(text)
        source = self._gate.policy.source_of(address)
        if source is None:
            return None
        asker = self._gate.policy.by_address(source, address)
        marked = self._marks.of(address, mark) if mark else None
        if marked is None:
            return asker
        return dataclasses.replace(asker, job=marked.job, account=marked.account or asker.account)
