"""Sign-in at an OpenID provider: the whole walk of a browser, and every way it must not end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.real.portal.site import browser, edge, ready, signed_in
from tests.support.openid import OpenIdProvider
from tests.support.site import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")
OPERATORS = "/site/operators"


def free_port() -> int:
    """The portal's own: its URL must be known to the configuration, as on a real site."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Both = tuple[Site, OpenIdProvider]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Both]:
    root = tmp_path_factory.mktemp("edge")
    site = edge(root)
    async with OpenIdProvider(site.issuer.ca, client="portal", secret="s3cret&more").running() as provider:
        secret = root / "client.secret"
        secret.write_text(provider.secret)
        port = free_port()
        site.sections["portal"] |= {
            "listen": [f"127.0.0.1:{port}"],
            "url": f"https://127.0.0.1:{port}",
            "oidc": {
                "issuer": provider.url,
                "client_id": provider.client,
                "client_secret_file": str(secret),
                "groups": [OPERATORS],
                "ca_file": str(site.issuer.ca.file),
            },
        }
        async with ready(site):
            yield site, provider


async def walked(session: aiohttp.ClientSession) -> str:
    """From our link to the provider's answer; returns where it sends the browser back to."""
    async with session.get("/signin/oidc", allow_redirects=False) as response:
        assert response.status == 303
        there = response.headers["Location"]
    async with session.get(there, allow_redirects=False) as response:
        assert response.status == 302
        return response.headers["Location"]


async def test_a_member_of_the_group_signs_in(both: Both) -> None:
    site, _ = both
    async with browser(site) as session:
        back = await walked(session)
        async with session.get(back, allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (303, "/")
        async with session.get("/") as response:
            assert response.status == 200
            assert "operator-1" in await response.text()
        async with session.get(back, allow_redirects=False) as response:
            assert response.status == 400  # a state serves once


WRONG: list[dict[str, Any]] = [
    {"wlcg.groups": ["/site/users"]},
    {"wlcg.groups": None},
    {"wlcg.groups": {"/site/operators": True}},
    {"wlcg.groups": "/site/operators2"},
    {"aud": "another-client"},
    {"aud": ["portal", "another"], "azp": "another"},
    {"iss": "https://evil.example"},
    {"nonce": "replayed"},
    {"exp": 1},
]


@pytest.mark.parametrize("claims", WRONG, ids=lambda claims: next(iter(claims)))
async def test_wrong_id_tokens_sign_nobody_in(both: Both, claims: dict[str, Any]) -> None:
    site, provider = both
    provider.claims = claims
    try:
        async with browser(site) as session:
            async with session.get(await walked(session), allow_redirects=False) as response:
                assert response.status == 403
            async with session.get("/") as response:
                assert response.status == 401
    finally:
        provider.claims = {}


async def test_a_forged_signature_signs_nobody_in(both: Both) -> None:
    site, provider = both
    provider.forge = True
    try:
        async with browser(site) as session, session.get(await walked(session)) as response:
            assert response.status == 403
    finally:
        provider.forge = False


async def test_a_ban_ends_the_session_and_refuses_another(both: Both) -> None:
    """The admin token's session goes on: it is nobody's whom a ban could name."""
    site, provider = both
    admin = site.token(groups=("/cms", "/site/admins"))
    async with browser(site) as session, browser(site) as local, site.api("identity-api", admin) as api:
        await signed_in(local)
        async with session.get(await walked(session), allow_redirects=False) as response:
            assert response.status == 303
        made = await api.call("POST", "/v1/bans", body={"issuer": provider.url, "subject": "operator-1"})
        async with asyncio.timeout(1.0):
            while True:
                async with session.get("/") as response:
                    if response.status == 401:
                        break
        async with session.get(await walked(session), allow_redirects=False) as response:
            assert response.status == 403
        async with local.get("/") as response:
            assert response.status == 200
        await api.call("DELETE", f"/v1/bans/{made['id']}")
        async with session.get(await walked(session), allow_redirects=False) as response:
            assert response.status == 303
    log = (site.root / "audit.log").read_text()
    assert "portal session ended" in log and "this identity is banned" in log


async def test_a_link_made_by_someone_else_signs_nobody_in(both: Both) -> None:
    """Login CSRF: the attacker's own code and state, in the victim's browser."""
    site, _ = both
    async with browser(site) as attacker, browser(site) as victim:
        back = await walked(attacker)
        async with victim.get(back, allow_redirects=False) as response:
            assert response.status == 400
        for query in ("", "?state=x&code=y", "?error=access_denied"):
            async with victim.get(f"/signin/oidc/callback{query}") as response:
                assert response.status in (400, 403)
        async with victim.get("/") as response:
            assert response.status == 401
