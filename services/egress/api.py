"""Egress over HTTP, for administrators: who sent what where, and what is open now."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from edged.errors import BadRequest
from edged.http.operations import ADMIN, Call, Operation
from services.egress.gate import Gate
from services.egress.ledger import GROUPS, Ledger, Usage

_LONGEST_S = 400 * 86400


class UsageQuery(msgspec.Struct, frozen=True):
    """``since`` and ``until`` in Unix seconds, whole hours count; ``by``: words of GROUPS, comma separated."""

    since: float | None = None
    until: float | None = None
    by: str = "vo,destination"


class UsageAnswer(msgspec.Struct, frozen=True):
    """One line for each combination of ``by`` that has figures."""

    since: float
    until: float
    lines: list[Usage]


class Open(msgspec.Struct, frozen=True):
    """Tunnels of one asker to one destination, open now. Bytes so far."""

    vo: str
    account: str
    job: str
    source: str
    destination: str
    way: str
    tunnels: int
    bytes_out: int
    bytes_in: int


class Administration:
    """The operations and what they need."""

    def __init__(self, gate: Gate, ledger: Ledger) -> None:
        self._gate, self._ledger = gate, ledger

    def operations(self) -> Sequence[Operation]:
        """The table."""
        return (
            Operation(
                method="GET",
                path="/v1/egress/usage",
                access=ADMIN,
                run=self.usage,
                query=UsageQuery,
                returns=UsageAnswer,
                summary="Bytes both ways, connections and refusals by hour",
            ),
            Operation(
                method="GET",
                path="/v1/egress/open",
                access=ADMIN,
                run=self.open,
                returns=list[Open],
                summary="Tunnels open now, by asker and destination",
            ),
        )

    async def usage(self, call: Call) -> UsageAnswer:
        """Sums from the ledger. Raises BadRequest."""
        query: UsageQuery = call.query
        until = query.until if query.until is not None else time.time() + 1
        since = query.since if query.since is not None else until - 86400
        words = tuple(query.by.split(","))
        if len(set(words)) != len(words) or not set(words) <= set(GROUPS):
            raise BadRequest(f"by: some of {', '.join(GROUPS)}, each once")
        if not 0 <= since <= until or until - since > _LONGEST_S:
            raise BadRequest("since must be before until, and not too long before")
        return UsageAnswer(since, until, await self._ledger.usage(since, until, words))

    async def open(self, _call: Call) -> list[Open]:
        """Sums over the tunnels of this process."""
        sums: dict[tuple[str, str, str, str, str, str], list[int]] = {}
        for tunnel in self._gate.tunnels:
            asker, passage = tunnel.passage.asker, tunnel.passage
            key = (
                asker.vo,
                asker.account,
                asker.job,
                asker.source,
                passage.decision.destination,
                passage.way.value,
            )
            figures = sums.setdefault(key, [0, 0, 0])
            figures[0] += 1
            figures[1] += tunnel.up.moved
            figures[2] += tunnel.down.moved
        return [Open(*key, *(count, up, down)) for key, (count, up, down) in sorted(sums.items())]
