"""The portal of a running edge: its figures, who may see them, and what a browser must not be used for."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from edged.errors import EdgeError
from tests.real.portal.site import ADMIN, browser, edge, ready, signed_in
from tests.support.site import Site, ended

DEADLINE_S = 20.0
HELLO = {"executable": "/bin/echo", "arguments": ["hello"], "queue": "short"}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with ready(edge(tmp_path_factory.mktemp("edge"))) as running:
        yield running


async def shown(session: aiohttp.ClientSession, text: str) -> str:
    """The overview as soon as it says ``text``."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with session.get("/") as response:
                assert response.status == 200
                page = await response.text()
            if re.search(text, page):
                return page
            await asyncio.sleep(0.05)


async def test_a_job_its_usage_and_why_another_was_refused(site: Site) -> None:
    async with site.api() as api:
        job = (await api.call("POST", "/v1/jobs", body=HELLO))["id"]
        await ended(api, job)
    stranger = site.token(groups=("/nobody",), sub="mallory")
    async with site.api(token=stranger) as api:
        with pytest.raises(EdgeError):
            await api.call("GET", "/v1/jobs")
    async with browser(site) as session:
        await signed_in(session)
        page = await shown(session, r'<th scope="row">cms</th><td>short</td><td class="n">0</td>')
        assert "Everything is ready." in page
        await shown(session, '<th scope="row">cms</th><td class="n">1</td><td class="n">1</td>')  # its usage
        async with site.api() as api:  # a VO sees its own
            (own,) = (await api.call("GET", "/v1/usage"))["rows"]
        assert (own["vo"], own["jobs"], own["gpu_used_s"]) == ("cms", 1, None)
        async with session.get("/usage.csv") as response:
            rows = list(csv.DictReader(io.StringIO(await response.text())))
        async with session.get("/usage.json") as response:
            told = await response.json()
        assert [row["vo"] for row in rows] == [row["vo"] for row in told]
        async with session.get("/search", params={"q": job}) as response:
            found = await response.text()
        assert "job accepted" in found and "alice" in found
        async with session.get("/search", params={"q": "no mapping"}) as response:
            assert "refused" in await response.text()
        page = await shown(session, "Refused in the last 24 hours")
        await shown(session, '<th scope="row">token</th>')


async def test_nothing_is_shown_without_signing_in(site: Site) -> None:
    async with browser(site) as session:
        for path in ("/", "/search?q=alice", "/usage.csv", "/usage.json", "/summary.json"):
            async with session.get(path) as response:
                assert response.status == 401
                assert "Sign in" in await response.text()
        async with session.get("/", headers={"Accept": "application/json"}) as response:
            assert response.status == 401
            assert response.content_type == "application/problem+json"
        async with session.get("/nothing") as response:
            assert response.status == 404


async def test_every_answer_has_the_headers_that_bind_a_browser(site: Site) -> None:
    async with browser(site) as session:
        await signed_in(session)
        for path in ("/", "/style.css", "/usage.csv", "/nothing", "/search?q=x"):
            async with session.get(path) as response:
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy and "unsafe" not in policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert "max-age" in response.headers["Strict-Transport-Security"]
        async with session.get("/") as response:
            text = await response.text()
        assert not re.search(r"<script|\son\w+=|style=|(href|src|action)=\"https?:", text)


async def test_the_cookie_is_for_this_host_and_no_script(site: Site) -> None:
    async with browser(site) as session:
        async with session.post("/signin", data={"token": ADMIN}, allow_redirects=False) as response:
            cookie = response.headers["Set-Cookie"]
        assert cookie.startswith("__Host-edged=")
        for word in ("Secure", "HttpOnly", "SameSite=Lax", "Path=/"):
            assert word in cookie
        assert "Domain" not in cookie


async def test_wrong_tokens_are_refused_audited_and_slowed(tmp_path: Path) -> None:
    async with ready(edge(tmp_path)) as site, browser(site) as session:
        for _ in range(60):
            async with session.post("/signin", data={"token": "wrong"}) as response:
                assert response.status == 403
        async with session.post("/signin", data={"token": ADMIN}) as response:
            assert response.status == 429
    assert '"wrong admin token"' in (tmp_path / "audit.log").read_text()


async def test_forms_of_other_sites_do_nothing(site: Site) -> None:
    async with browser(site) as session:
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            async with session.post("/signin", data={"token": ADMIN}, headers=headers) as response:
                assert response.status == 403
        await signed_in(session)
        for form in ({}, {"csrf": "guessed"}):
            async with session.post("/signout", data=form) as response:
                assert response.status == 403
        async with session.get("/") as response:
            page = await response.text()
        (csrf,) = re.findall(r'name="csrf" value="([^"]+)"', page)
        async with session.post("/signout", data={"csrf": csrf}, allow_redirects=False) as response:
            assert response.status == 303
        async with session.get("/") as response:
            assert response.status == 401


async def test_programs_read_with_the_admin_token_and_change_nothing(site: Site) -> None:
    async with browser(site) as session:
        bearer = {"Authorization": f"Bearer {ADMIN}", "Accept": "*/*"}
        async with session.get("/summary.json", headers=bearer) as response:
            assert response.status == 200
            assert "processes" in await response.json()
        async with session.post("/signout", headers=bearer) as response:
            assert response.status == 401
        async with session.get("/", headers={"Authorization": "Bearer wrong"}) as response:
            assert response.status == 401


async def test_hostile_search_is_text_and_bounded(site: Site) -> None:
    async with browser(site) as session:
        await signed_in(session)
        async with session.get("/search", params={"q": "<script>alert(1)</script>\"'"}) as response:
            assert response.status == 200
            assert "<script" not in await response.text()
        for text in ("", "ab", "x" * 201):
            async with session.get("/search", params={"q": text}) as response:
                assert response.status == 400
        async with session.post("/signin", data={"token": "x" * 100_000}) as response:
            assert response.status == 413


async def test_summaries_are_on_the_health_listener(site: Site) -> None:
    address = f"http://{site.listening['observe'][0]}"
    async with aiohttp.ClientSession() as session, session.get(f"{address}/summary") as response:
        assert "jobs" in await response.json()
