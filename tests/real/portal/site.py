"""A running edge with a portal, jobs, storage and egress, and a browser's cookie jar for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from edged.config.site import Tls
from edged.tls import client_context
from tests.support.site import Site

ADMIN = "an-admin-token-of-more-than-32-characters"
READY_S = 20.0
HTML = {"Accept": "text/html"}


def edge(root: Path, **portal: Any) -> Site:
    """A site whose audit log the portal may search."""
    token = root / "admin.token"
    token.write_text(ADMIN + "\n")
    return Site(
        root,
        log={"audit_file": str(root / "audit.log")},
        jobs={
            "listen": ["127.0.0.1:0"],
            "batch": "local",
            "sessions": str(root / "sessions"),
            "poll_s": 0.2,
            "queue": [{"name": "short", "default_walltime_s": 60}],
        },
        portal={
            "listen": ["127.0.0.1:0"],
            "admin_token_file": str(token),
            "refresh_s": 0.2,
            **portal,
        },
    )


@asynccontextmanager
async def ready(site: Site) -> AsyncIterator[Site]:
    """The site once all its parts say that they are ready."""
    async with site.running(), aiohttp.ClientSession() as session:
        async with asyncio.timeout(READY_S):
            while True:
                async with session.get(f"http://{site.listening['observe'][0]}/readyz") as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.05)
        yield site


@asynccontextmanager
async def browser(site: Site) -> AsyncIterator[aiohttp.ClientSession]:
    """Keeps cookies, follows nothing, asks for HTML."""
    context = client_context(Tls(), site.issuer.ca.file)
    async with aiohttp.ClientSession(
        site.url("portal"),
        connector=aiohttp.TCPConnector(ssl=context),
        cookie_jar=aiohttp.CookieJar(unsafe=True),  # an address as host
        headers=HTML,
    ) as session:
        yield session


async def signed_in(session: aiohttp.ClientSession) -> None:
    """With the admin token, as the form does."""
    async with session.post("/signin", data={"token": ADMIN}, allow_redirects=False) as response:
        assert response.status == 303, await response.text()
