"""The cache's metrics, computed when scraped from plain numbers the hot path keeps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from edged.config.cache import Cache
from edged.metrics import LATENCY_S, Across, merging
from services.cache.documents import MANIFEST
from services.cache.traffic import Outcome, Traffic

if TYPE_CHECKING:
    from services.cache.service import CacheService

merging("cache_upstream_resting", Across.LARGEST)  # each worker has a circuit of its own

_HITS = (Outcome.MEMORY, Outcome.DISK, Outcome.SHARED, Outcome.STALE, Outcome.REVALIDATED)
_MAX_LABELS = 256  # repositories shown by name; under a wildcard there may be more, they count as "other"


class Figures(Collector):
    """Collects from one process's cache."""

    def __init__(self, service: CacheService, config: Cache) -> None:
        self._service = service
        self._config = config

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: which families have samples depends on what passed."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families."""
        yield from self._traffic()
        yield from self._upstreams()
        yield from self._trust()
        yield from self._process()

    def traffics(self) -> list[Traffic]:
        """Those with a name of their own, and the rest as one."""
        routes = self._service.routes
        found = [repository.traffic for repository in routes.repositories.values()]
        shown, rest = found[:_MAX_LABELS], found[_MAX_LABELS:]
        if rest:
            shown.append(_sum(rest))
        return shown + [destination.traffic for destination in routes.destinations]

    def _traffic(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "edged_cache_requests",
            "Requests by repository or destination and outcome.",
            labels=("source", "outcome"),
        )
        sent = CounterMetricFamily("edged_cache_sent_bytes", "Bytes sent to clients.", labels=("source",))
        seconds = HistogramMetricFamily(
            "edged_cache_request_seconds",
            "Seconds of requests that were not hits in memory.",
            labels=("source",),
        )
        for traffic in self.traffics():
            for outcome, count in traffic.requests().items():
                requests.add_metric((traffic.name, outcome.value), count)
            sent.add_metric((traffic.name,), traffic.bytes)
            seconds.add_metric((traffic.name,), _buckets(traffic.buckets), traffic.seconds)
        yield from (requests, sent, seconds)

    def _upstreams(self) -> Iterator[Metric]:
        counts = {
            "requests": "Requests sent to upstreams.",
            "failures": "Requests upstreams failed.",
            "bytes": "Bytes received from upstreams.",
            "damaged": "Objects and documents refused because their hash, signature or revision was wrong.",
            "raced": "Requests sent because another upstream was slow.",
        }
        origins = self._service.origins.all()
        for name, text in counts.items():
            family = CounterMetricFamily(f"edged_cache_upstream_{name}", text, labels=("upstream",))
            for origin in origins:
                family.add_metric((origin.base,), getattr(origin.figures, name))
            yield family
        seconds = HistogramMetricFamily(
            "edged_cache_upstream_seconds", "Seconds until an upstream's head came.", labels=("upstream",)
        )
        resting = GaugeMetricFamily(
            "edged_cache_upstream_resting", "1 while its circuit is open.", labels=("upstream",)
        )
        for origin in origins:
            seconds.add_metric((origin.base,), _buckets(origin.figures.buckets), origin.figures.seconds)
            resting.add_metric((origin.base,), float(origin.rests))
        yield from (seconds, resting)

    def _trust(self) -> Iterator[Metric]:
        label = ("repository",)
        times = {
            "manifest_fetched": GaugeMetricFamily(
                "edged_cache_manifest_fetched_timestamp_seconds",
                "When the manifest was fetched.",
                labels=label,
            ),
            "published": GaugeMetricFamily(
                "edged_cache_manifest_published_timestamp_seconds",
                "When the revision was published.",
                labels=label,
            ),
            "whitelist": GaugeMetricFamily(
                "edged_cache_whitelist_expiry_timestamp_seconds", "When the whitelist expires.", labels=label
            ),
            "certificate": GaugeMetricFamily(
                "edged_cache_certificate_expiry_timestamp_seconds",
                "When the signing certificate expires.",
                labels=label,
            ),
        }
        revision = GaugeMetricFamily(
            "edged_cache_revision_max",
            "The newest revision seen.",
            labels=label,
        )
        refused = CounterMetricFamily(
            "edged_cache_documents_refused",
            "Manifests and whitelists refused.",
            labels=("repository", "reason"),
        )
        for repository in list(self._service.routes.repositories.values())[:_MAX_LABELS]:
            trust, name = repository.documents.trust, (repository.name,)
            held = repository.documents.held(MANIFEST)
            for key, value in (
                ("manifest_fetched", held.fetched if held else 0.0),
                ("published", trust.published),
                ("whitelist", trust.whitelist_expires),
                ("certificate", trust.certificate_expires),
            ):
                if value:
                    times[key].add_metric(name, value)
            revision.add_metric(name, trust.revision)
            refused.add_metric((*name, "rollback"), trust.rollbacks)
            refused.add_metric((*name, "untrusted"), trust.bad)
        yield from (*times.values(), revision, refused)

    def _process(self) -> Iterator[Metric]:
        service = self._service
        gauges = {
            "connections": ("Open client connections.", service.listener.connections),
            "memory_bytes": ("Bytes of hot objects in memory.", service.residents.bytes),
            "open_files": ("Hot objects kept open.", service.residents.open_files),
            "fills": ("Objects being fetched.", service.objects.filling),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"edged_cache_{name}", text, value=value)
        counters = {
            "refused": ("Requests and connections refused.", service.listener.refused),
            "unwelcome": ("Connections from sources that are not allowed.", service.listener.unwelcome),
            "client_timeouts": ("Clients closed because they were too slow.", service.listener.timed_out),
            "unkept": ("Objects served but not kept: the disk did not take them.", service.keeper.unkept),
            "evicted_files": ("Files evicted.", service.keeper.evicted.files),
            "evicted_bytes": ("Bytes evicted.", service.keeper.evicted.bytes),
            "log_dropped": ("Access log lines dropped.", service.access.dropped),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"edged_cache_{name}", text, value=value)
        used = GaugeMetricFamily("edged_cache_disk_used_bytes_max", "Bytes in the store (shared by workers).")
        used.add_metric((), service.store.usage.total())
        yield used

    def summary(self) -> dict[str, object]:
        """What WLCG's squid monitoring shows of a proxy: requests, hits, bytes each way, objects."""
        requests: dict[str, int] = {}
        sent = 0
        for traffic in self.traffics():
            sent += traffic.bytes
            for outcome, count in traffic.requests().items():
                requests[outcome.value] = requests.get(outcome.value, 0) + count
        hits = sum(requests.get(outcome.value, 0) for outcome in _HITS)
        fetched = sum(origin.figures.bytes for origin in self._service.origins.all())
        return {
            "requests": requests,
            "hit_ratio": hits / max(1, sum(requests.values())),
            "client_bytes": sent,
            "upstream_bytes": fetched,
            "byte_hit_ratio": max(0.0, 1 - fetched / sent) if sent else 0.0,
            "connections": self._service.listener.connections,
            "objects": self._service.keeper.files,
            "disk_bytes": self._service.store.usage.total(),
            "disk_limit": self._config.disk,
            "memory_bytes": self._service.residents.bytes,
            "repositories": {
                repository.name: {
                    "revision": repository.documents.trust.revision,
                    "manifest_age_s": _age(repository.documents.held(MANIFEST)),
                    "rollbacks_refused": repository.documents.trust.rollbacks,
                    "untrusted_refused": repository.documents.trust.bad,
                }
                for repository in self._service.routes.repositories.values()
            },
            "upstreams": {
                origin.base: {
                    "requests": origin.figures.requests,
                    "failures": origin.figures.failures,
                    "damaged": origin.figures.damaged,
                    "resting": origin.rests,
                }
                for origin in self._service.origins.all()
            },
        }


def _age(document: object) -> float | None:
    fetched = getattr(document, "fetched", None)
    return round(time.time() - fetched, 1) if fetched is not None else None


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    found: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, LATENCY_S), "+Inf"], counts, strict=True):
        total += count
        found.append((bound, total))
    return found


def _sum(traffics: list[Traffic]) -> Traffic:
    whole = Traffic("other")
    for traffic in traffics:
        whole.memory += traffic.memory
        whole.disk += traffic.disk
        whole.bytes += traffic.bytes
        whole.seconds += traffic.seconds
        whole.buckets = [a + b for a, b in zip(whole.buckets, traffic.buckets, strict=True)]
        for outcome, count in traffic.others.items():
            whole.others[outcome] = whole.others.get(outcome, 0) + count
    return whole
