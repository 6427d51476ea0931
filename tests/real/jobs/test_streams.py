"""Requests that last: a ban ends them, and a token's end too; uploads that ask first are invited."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientError

from edged.errors import Denied
from tests.real.jobs.fixtures import local_jobs
from tests.support.site import Site, reached

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = {"script": "#!/bin/sh\necho begun\nsleep 60\n"}
WITHIN_S = 10.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="edged-site-") as root:
        async with Site(Path(root), jobs=local_jobs(Path(root))).running() as running:
            yield running


@pytest.mark.parametrize("call", ["/v1/events", "/v1/jobs/{id}/logs?follow=true"])
async def test_a_ban_that_keeps_jobs_ends_streams(site: Site, call: str) -> None:
    name = f"banned-{len(call)}"
    admin = site.token(groups=("/cms", "/site/admins"), sub="admin")
    async with (
        site.api("jobs", site.token(sub=name)) as api,
        site.api("identity-api", admin) as identity,
        asyncio.timeout(30),
    ):
        job = await api.call("POST", "/v1/jobs", body=ENDLESS)
        await reached(api, job["id"], ("RUNNING",))
        path, _, query = call.format(id=job["id"]).partition("?")
        async with api.request("GET", path, query={"follow": "true"} if query else {}) as stream:
            if query:
                assert await stream.content.readline() == b"begun\n"
            ban = {"issuer": site.issuer.url, "subject": name, "keep_jobs": True, "reason": "test"}
            await identity.call("POST", "/v1/bans", body=ban)
            async with asyncio.timeout(WITHIN_S):
                with pytest.raises((ClientError, OSError)):
                    while await stream.content.readany():
                        pass
        with pytest.raises(Denied):
            await api.call("GET", f"/v1/jobs/{job['id']}")
        async with site.api("jobs") as other:
            assert (await reached(other, job["id"], ("RUNNING",)))["state"] == "RUNNING"
            await other.call("POST", f"/v1/jobs/{job['id']}/cancel")


async def test_a_long_poll_of_a_banned_caller_is_told_so(site: Site) -> None:
    admin = site.token(groups=("/cms", "/site/admins"), sub="admin")
    async with (
        site.api("jobs", site.token(sub="polling")) as api,
        site.api("identity-api", admin) as identity,
        asyncio.timeout(30),
    ):
        job = await api.call("POST", "/v1/jobs", body={**ENDLESS, "inputs": ["never"]})
        polling = asyncio.ensure_future(
            api.call("GET", f"/v1/jobs/{job['id']}", wait=60, seen=repr(job["changed_at"]))
        )
        await asyncio.sleep(0)
        ban = {"issuer": site.issuer.url, "subject": "polling", "keep_jobs": True, "reason": "test"}
        await identity.call("POST", "/v1/bans", body=ban)
        with pytest.raises(Denied):
            await polling


async def test_a_followed_log_ends_with_the_token(site: Site) -> None:
    token = site.token(sub="brief", exp=int(time.time()) + 4)
    async with site.api("jobs", token) as api, asyncio.timeout(30):
        job = await api.call("POST", "/v1/jobs", body=ENDLESS)
        await reached(api, job["id"], ("RUNNING",))
        async with api.request("GET", f"/v1/jobs/{job['id']}/logs", query={"follow": "true"}) as stream:
            assert await stream.text() == "begun\n"
    async with site.api("jobs") as other:
        assert (await other.call("GET", f"/v1/jobs/{job['id']}"))["state"] == "RUNNING"
        await other.call("POST", f"/v1/jobs/{job['id']}/cancel")


async def test_who_asks_before_sending_a_body_is_invited(site: Site) -> None:
    body = b'{"executable": "true"}'
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.token()}\r\n"
        f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, _, port = site.listening["jobs"][0].rpartition(":")
    context = ssl.create_default_context(cafile=str(site.issuer.ca.file))
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
    async with asyncio.timeout(WITHIN_S):
        writer.write(head.encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 201")
    writer.close()
