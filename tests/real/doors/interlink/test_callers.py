"""Who may bring pods, and as whom they run: rules, mutual TLS, the ban of a virtual node."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from edged.identity.testca import ThrowAwayCa
from tests.real.doors.interlink.fixtures import answering
from tests.real.jobs.fixtures import local_jobs
from tests.support import local_accounts
from tests.support.kubelet import Kubelet, container, kubelet, pod
from tests.support.site import Site

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.root]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    """accountd mode with two accounts of one VO, one of another, and a listener that demands certificates."""
    if os.geteuid() != 0:
        pytest.skip("becoming accounts needs root")
    local_accounts.ensure()
    with tempfile.TemporaryDirectory(prefix="edged-callers-") as made:
        root = Path(made)
        clients = ThrowAwayCa(root / "clients")
        clients.host("vk.example.org")
        clients.host("stranger.example.org")
        made_site = Site(root)
        issuer = made_site.issuer.url
        rules = [
            {"namespaces": ["analysis-*"], "account": "pilot1"},
            {"namespaces": ["stolen"], "account": "atlprd"},
            {"namespaces": ["default"]},
        ]
        door = {
            "listen": ["127.0.0.1:0"],
            "client_ca_file": str(clients.file),
            "subjects": {"CN=vk.example.org": "cmsprd"},
            "runtime": {"kind": "none"},
            "rule": rules,
        }
        made_site.sections.update(
            accounts={"mode": "accountd", "minimum_uid": 1000},
            mapping=[
                {"issuer": issuer, "groups": ["/atlas"], "account": "atlprd", "vo": "atlas"},
                {"issuer": issuer, "groups": ["/cms/analysis"], "account": "pilot1"},
                {"issuer": issuer, "groups": ["/cms"], "account": "cmsprd", "class": "production"},
            ],
            identity={
                "listen": ["127.0.0.1:0"],
                "admins": ["/site/admins"],
                "assertions": [{"service": "jobs", "accounts": ["cmsprd", "pilot1", "atlprd"]}],
            },
            jobs=local_jobs(root, interlink=door),
        )
        async with made_site.running():
            await answering(made_site, "interlink", certificate(made_site, "vk"))
            yield made_site


def certificate(site: Site, name: str) -> tuple[Path, Path]:
    directory = site.root / "clients"
    return directory / f"{name}.example.org.crt", directory / f"{name}.example.org.key"


async def who(node: Kubelet, namespace: str) -> str:
    """Which account a pod of a namespace runs as."""
    one = pod(container(script="id -un"), namespace=namespace, restart_policy="Never")
    await node.created(one)
    assert (await node.ended(one))["main"]["exitCode"] == 0
    return (await node.text(one)).strip()


async def test_rules_choose_the_account_within_the_vo(site: Site) -> None:
    async with kubelet(
        site.url("interlink"), site.token(sub="vk"), site.issuer.ca.file, certificate=certificate(site, "vk")
    ) as node:
        assert await who(node, "default") == "cmsprd"
        assert await who(node, "analysis-1") == "pilot1"
        assert await node.create(pod(namespace="stolen")) == (403, b"account atlprd is not of cms")
        assert (await node.create(pod(namespace="kube-system")))[0] == 403


async def test_a_certificate_may_stand_for_a_token(site: Site) -> None:
    async with kubelet(
        site.url("interlink"), None, site.issuer.ca.file, certificate=certificate(site, "vk")
    ) as node:
        assert await who(node, "default") == "cmsprd"
    async with kubelet(
        site.url("interlink"), None, site.issuer.ca.file, certificate=certificate(site, "stranger")
    ) as node:
        assert (await node.create(pod()))[0] == 401


async def test_without_a_certificate_nobody_gets_in(site: Site) -> None:
    async with kubelet(site.url("interlink"), site.token(sub="vk"), site.issuer.ca.file) as node:
        with pytest.raises(aiohttp.ClientError):
            await node.status(pod())


async def test_a_ban_of_the_node_ends_the_pods_it_brought_for_others(site: Site) -> None:
    one = pod(container(script="sleep 60"), namespace="analysis-2", restart_policy="Never")
    claims: dict[str, Any] = {"sub": "boss", "wlcg.groups": ["/cms", "/site/admins"]}
    analysis: dict[str, Any] = {"wlcg.groups": ["/cms/analysis"]}
    admin = site.token(**claims)
    async with (
        site.api("identity-api", admin) as bans,
        kubelet(
            site.url("interlink"),
            site.token(sub="bad"),
            site.issuer.ca.file,
            certificate=certificate(site, "vk"),
        ) as node,
        site.api(token=site.token(**analysis)) as owner,
    ):
        job = await node.created(one)
        await node.until(one, lambda s: "running" in s["containers"][0]["state"])
        await bans.call(
            "POST", "/v1/bans", body={"issuer": site.issuer.url, "subject": "bad", "reason": "test"}
        )
        async with asyncio.timeout(30):
            while (view := await owner.call("GET", f"/v1/jobs/{job}"))["state"] != "KILLED":
                await asyncio.sleep(0.1)
        assert view["reason"] == "cancelled by ban"
        status, body = await node.call("GET", "/status", [one])
        assert status == 403, json.loads(body)
