"""Metrics: one registry a process, merged over the worker processes of a service.

Names start with ``edged_`` and end with their unit. Label values come from closed sets (verb,
outcome, issuer from the configuration): never a path, a user or a job id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry(auto_describe=True)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
    """A number that only grows. ``name`` without ``edged_`` and without ``_total``."""
    return Counter(f"edged_{name}", text, labels, registry=REGISTRY)


def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
    """A number that goes up and down."""
    return Gauge(f"edged_{name}", text, labels, registry=REGISTRY)


def histogram(
    name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_S
) -> Histogram:
    """A distribution; seconds unless the name says otherwise."""
    return Histogram(f"edged_{name}", text, labels, registry=REGISTRY, buckets=buckets)


def register(collector: Collector) -> None:
    """Add a collector that computes its samples when scraped."""
    REGISTRY.register(collector)


def exposition() -> bytes:
    """This process's metrics in the Prometheus text format."""
    return generate_latest(REGISTRY)


def merge(pages: Iterable[bytes]) -> bytes:
    """The pages of several workers as one: samples of the same name and labels are added up.

    Sums are right for counters and histograms; our gauges count things (connections, bytes held), so
    they add up too. ``*_created``, ``*_timestamp_seconds`` and ``*_max`` keep the largest.
    """
    totals: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    heads: dict[str, tuple[str, str]] = {}
    family_of: dict[str, str] = {}
    for page in pages:
        for family in text_string_to_metric_families(page.decode()):
            heads.setdefault(family.name, (family.type, family.documentation))
            for sample in family.samples:
                family_of[sample.name] = family.name
                values = totals.setdefault(sample.name, {})
                key = tuple(sorted(sample.labels.items()))
                keep_largest = sample.name.endswith(("_created", "_timestamp_seconds", "_max"))
                before = values.get(key, 0.0)
                values[key] = max(before, sample.value) if keep_largest else before + sample.value
    return _render(totals, heads, family_of)


def _render(
    totals: dict[str, dict[tuple[tuple[str, str], ...], float]],
    heads: dict[str, tuple[str, str]],
    family_of: dict[str, str],
) -> bytes:
    lines: list[str] = []
    said: set[str] = set()
    for name, values in totals.items():
        family = family_of[name]
        if family not in said:
            said.add(family)
            kind, text = heads[family]
            shown = f"{family}_total" if kind == "counter" else family
            lines += [f"# HELP {shown} {_escape(text)}", f"# TYPE {shown} {kind}"]
        for key, value in values.items():
            labels = ",".join(f'{label}="{_escape(text, quote=True)}"' for label, text in key)
            lines.append(f"{name}{{{labels}}} {value!r}" if labels else f"{name} {value!r}")
    return ("\n".join(lines) + "\n").encode()


def _escape(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text
