"""What dashboards and alerts ask for is what a running edge exports: names, and the labels they use."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from edged import metrics
from tests.real.cache.forge import Forge
from tests.real.jobs.fixtures import local_jobs
from tests.support.origin import Origin
from tests.support.site import Site
from tests.support.stratum import REPOSITORY, Stratum

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILES = Path(__file__).parents[3] / "ansible/roles/edged_monitoring/files"
SELECTOR = re.compile(r"\b(edged_[a-z_]+)(?:\{([^}]*)\})?")
FROM_PROMETHEUS = {"job", "instance", "le"}  # of the scrape, and of a histogram's buckets


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and the labels that its legend or annotation shows."""

    where: str
    text: str
    shown: frozenset[str]

    def selectors(self) -> Iterator[tuple[str, set[str]]]:
        """Metric → labels it is chosen by."""
        for name, matchers in SELECTOR.findall(self.text):
            yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))

    def grouped(self) -> set[str]:
        """Labels after by, on, without."""
        found = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", self.text)
        return {word.strip() for words in found for word in words.split(",") if word.strip()}


def queries() -> list[Query]:
    """Of every panel and every alert."""
    found = []
    for file in sorted((FILES / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                shown = frozenset(re.findall(r"\{\{\s*(\w+)\s*\}\}", target.get("legendFormat", "")))
                found.append(Query(f"{file.stem}: {panel['title']}", target["expr"], shown))
    for group in yaml.safe_load((FILES / "rules/edged.rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            shown = frozenset(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
            found.append(Query(rule["alert"], rule["expr"], shown))
    return found


def declared() -> dict[str, set[str]]:
    """Metric → labels, of what the services make when they are imported; a server's or cluster's come later."""
    for point in [*entry_points(group="edged.services"), *entry_points(group="edged.batch")]:
        point.load()
    importlib.import_module(
        "services.jobs.batch.ssh.reach"
    )  # what drivers of clusters elsewhere import when used
    importlib.import_module("services.jobs.batch.slurmrest.reach")
    kinds = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket", "_sum", "_count")}
    found: dict[str, set[str]] = {}
    for collector in list(metrics.REGISTRY._collector_to_names):
        for kind, endings in kinds.items():
            if isinstance(collector, kind):
                found |= {f"{collector._name}{ending}": set(collector._labelnames) for ending in endings}
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def exported(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, set[str]]]:
    """The page of a running edge with a part of every kind, and what its services declare beside it."""
    root = tmp_path_factory.mktemp("edge")
    (root / "data").mkdir()
    forge = Forge()  # a repository whose whitelist is read, since the site has its key
    (root / "master.pub").write_bytes(forge.public())
    async with Stratum().running() as stratum:
        stratum.objects = forge.objects(5)
        with Origin.running("127.0.0.1") as origin:
            site = Site(root, **_everything(root, stratum.url, origin.authority))
            async with site.running():
                await _used(site, stratum, origin)
                found = declared()
                async with asyncio.timeout(20):  # a tunnel is counted when it has ended
                    while not found.get("edged_egress_connections_total"):
                        for name, labels in (await _page(site)).items():
                            found.setdefault(name, set()).update(labels)
                yield found


def _everything(root: Path, stratum: str, origin: str) -> dict[str, Any]:
    listen = {"listen": ["127.0.0.1:0"]}
    return {
        "jobs": local_jobs(root),
        "storage": {**listen, "export": [{"prefix": "/cms", "root": str(root / "data"), "vo": "cms"}]},
        "egress": {
            **listen,
            "inside": ["127.0.0.0/8"],
            "source": [{"name": "nodes", "networks": ["127.0.0.0/8"], "vo": "cms"}],
            "destination": [
                {"name": "origin", "networks": ["127.0.0.0/8"], "ports": [int(origin.rpartition(":")[2])]}
            ],
            "rule": [{"name": "cms-out", "to": ["origin"]}],
        },
        "cache": {
            **listen,
            "store": str(root / "cache"),
            "disk": "50M",
            "disk_free": "1M",
            "repository": [{"name": REPOSITORY, "stratums": [stratum], "keys": [str(root / "master.pub")]}],
            "destination": [{"name": "origin", "hosts": [origin]}],
        },
    }


async def _used(site: Site, stratum: Stratum, origin: Origin) -> None:
    """What has no sample before it was used: a repository, a tunnel."""
    async with aiohttp.ClientSession() as session:
        for proxy, url in (
            ("cache", f"{stratum.url}/cvmfs/{REPOSITORY}/.cvmfspublished"),
            ("egress", f"http://{origin.authority}/peer"),
        ):
            async with session.get(url, proxy=f"http://{site.listening[proxy][0]}") as response:
                assert response.status == 200, await response.text()


async def _page(site: Site) -> dict[str, set[str]]:
    """Every family of /metrics; the labels of those that have samples."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{site.listening['observe'][0]}/metrics") as response,
    ):
        text = await response.text()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        found.setdefault(f"{family.name}_total" if family.type == "counter" else family.name, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_query_names_a_metric_with_the_labels_it_uses(exported: dict[str, set[str]]) -> None:
    wrong = []
    for query in queries():
        there = set(FROM_PROMETHEUS)
        for name, labels in query.selectors():
            if name not in exported:
                wrong.append(f"{query.where}: no metric {name}")
                continue
            there |= exported[name]
            if odd := labels - exported[name] - FROM_PROMETHEUS:
                wrong.append(f"{query.where}: {name} has no label {odd}; it has {exported[name]}")
        if unknown := (query.grouped() | query.shown) - there:
            wrong.append(f"{query.where}: no metric of it has the label {unknown}")
        if (grouped := query.grouped()) and (lost := query.shown - grouped):
            wrong.append(f"{query.where}: shows {lost}, which the sum leaves out")
    assert not wrong, "\n".join(wrong)


async def test_no_metric_has_a_label_that_prometheus_would_rename(exported: dict[str, set[str]]) -> None:
    assert not {name for name, labels in exported.items() if labels & {"job", "instance"}}


async def test_every_metric_says_what_it_is() -> None:
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        assert family.documentation.endswith("."), family.name
