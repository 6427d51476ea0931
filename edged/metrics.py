"""Metrics: one registry a process, merged over the worker processes of a service.

Names start with ``edged_`` and end with their unit. Label values come from closed sets (verb,
outcome, issuer from the configuration): never a path, a user or a job id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry(auto_describe=True)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Across(Enum):
    """What several processes of one service say together."""

    SUM = "sum"  # each counts its own: connections, transfers
    LARGEST = "largest"  # all tell of the same thing: the size of a file system
    LEAST = "least"  # as good as the worst of them: 1 while connected, when a certificate ends


_LARGEST = ("_created", "_timestamp_seconds", "_max")  # endings of what is LARGEST unless it says otherwise
_across: dict[str, Across] = {}


def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
    """A number that only grows. ``name`` without ``edged_`` and without ``_total``."""
    return Counter(f"edged_{name}", text, labels, registry=REGISTRY)


def gauge(name: str, text: str, labels: Sequence[str] = (), *, across: Across | None = None) -> Gauge:
    """A number that goes up and down. ``across``: see ``merge``."""
    if across is not None:
        merging(name, across)
    return Gauge(f"edged_{name}", text, labels, registry=REGISTRY)


def histogram(
    name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_S
) -> Histogram:
    """A distribution; seconds unless the name says otherwise."""
    return Histogram(f"edged_{name}", text, labels, registry=REGISTRY, buckets=buckets)


def register(collector: Collector) -> None:
    """Add a collector that computes its samples when scraped."""
    REGISTRY.register(collector)


def merging(name: str, across: Across) -> None:
    """How ``merge`` treats a gauge, told where it is imported: a collector's samples exist only while it runs."""
    _across[f"edged_{name}"] = across


def exposition() -> bytes:
    """This process's metrics in the Prometheus text format."""
    return generate_latest(REGISTRY)


def merge(pages: Iterable[bytes]) -> bytes:
    """The pages of several workers as one: samples of the same name and labels become one sample.

    Counters and histograms add up, and so do gauges unless they are marked (``Across``) or their name ends
    with one of ``_LARGEST``.
    """
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    heads: dict[str, tuple[str, str]] = {}
    family_of: dict[str, str] = {}
    for page in pages:
        for family in text_string_to_metric_families(page.decode()):
            heads.setdefault(family.name, (family.type, family.documentation))
            for sample in family.samples:
                family_of[sample.name] = family.name
                values = found.setdefault(sample.name, {})
                key = tuple(sorted(sample.labels.items()))
                values[key] = _together(sample.name, values.get(key), sample.value)
    return _render(found, heads, family_of)


def _together(name: str, before: float | None, value: float) -> float:
    if before is None:
        return value
    match _across.get(name, Across.LARGEST if name.endswith(_LARGEST) else Across.SUM):
        case Across.LARGEST:
            return max(before, value)
        case Across.LEAST:
            return min(before, value)
    return before + value


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
