"""From the metrics of all processes to what the page shows of each part. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]
_HITS = frozenset({"memory", "disk", "shared", "stale", "revalidated"})


@dataclass(slots=True)
class Readings:
    """Samples by name; samples of several processes lie side by side."""

    samples: dict[str, list[tuple[Labels, float]]] = field(default_factory=dict)

    def add(self, page: str) -> None:
        """Take one process's page. What is no metrics page is left out."""
        try:
            for family in text_string_to_metric_families(page):
                for sample in family.samples:
                    self.samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        except ValueError:
            return

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sums over everything but ``labels``."""
        sums: dict[tuple[str, ...], float] = defaultdict(float)
        for held, value in self.samples.get(name, ()):
            sums[tuple(held.get(label, "") for label in labels)] += value
        return dict(sorted(sums.items()))

    def total(self, name: str) -> float:
        """The sum of all samples."""
        return sum(value for _, value in self.samples.get(name, ()))


@dataclass(frozen=True, slots=True)
class Space:
    """An export: bytes."""

    export: str
    used: float
    total: float


def spaces(readings: Readings) -> list[Space]:
    """What is known of each export's room; workers tell the same, so the largest counts."""
    used, total = (_largest(readings, f"edged_storage_space_{what}_bytes") for what in ("used", "total"))
    return [Space(export, used.get(export, 0.0), total[export]) for export in sorted(total)]


def _largest(readings: Readings, name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for labels, value in readings.samples.get(name, ()):
        export = labels.get("export", "")
        found[export] = max(value, found.get(export, 0.0))
    return found


@dataclass(frozen=True, slots=True)
class Hits:
    """A repository or destination of the cache."""

    source: str
    requests: float
    hits: float
    sent: float


def hits(readings: Readings) -> list[Hits]:
    """One for each source that was asked for."""
    sent = readings.by("edged_cache_sent_bytes_total", "source")
    asked: dict[str, float] = defaultdict(float)
    had: dict[str, float] = defaultdict(float)
    for (source, outcome), count in readings.by("edged_cache_requests_total", "source", "outcome").items():
        asked[source] += count
        had[source] += count if outcome in _HITS else 0.0
    return [Hits(source, asked[source], had[source], sent.get((source,), 0.0)) for source in sorted(asked)]
