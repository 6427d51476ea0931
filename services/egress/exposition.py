"""The gate's figures as metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from edged import metrics
from services.egress.accounts import Accounts

if TYPE_CHECKING:
    from services.egress.gate import Gate


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


@contextmanager
def shown(gate: Gate, accounts: Accounts) -> Iterator[None]:
    """The metrics are in the registry for as long as this is entered."""
    collector = EgressMetrics(gate, accounts)
    metrics.register(collector)
    try:
        yield
    finally:
        metrics.REGISTRY.unregister(collector)
