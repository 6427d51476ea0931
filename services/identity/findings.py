"""For ``edged doctor``: can the issuers be reached, and how old are the keys we hold of them?"""

from __future__ import annotations

import asyncio
import time

import aiohttp

from edged.config import Config
from edged.config.identity import Issuer
from edged.doctor import Finding
from edged.errors import EdgeError
from edged.identity.keycache import KeyCache, directory
from edged.tls import client_context
from services.identity.fetching import IssuerSite

PART = "issuer"
OLD_S = 3 * 86400.0
REACH = "tokens of known keys still work; look at the firewall, the CA bundle (tls.ca_file) and the issuer's status"


async def findings(config: Config) -> list[Finding]:
    """Two for each issuer: reached now, and the age of what is held."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        found = await asyncio.gather(*(_reached(config, issuer, session) for issuer in config.issuers))
    held = KeyCache(directory(config.runtime.state))
    ages = [aged(issuer, held, time.time()) for issuer in config.issuers]
    return [*found, *ages]


async def _reached(config: Config, issuer: Issuer, session: aiohttp.ClientSession) -> Finding:
    if issuer.jwks_file is not None:
        there = issuer.jwks_file.exists()
        return Finding(
            PART, there, f"{issuer.url}: keys in {issuer.jwks_file}", "put the issuer's JWKS there"
        )
    try:
        context = client_context(config.tls, issuer.ca_file)
        await IssuerSite(issuer, session, context).jwks()
    except (EdgeError, OSError) as error:
        return Finding(PART, False, f"{issuer.url}: {error}", REACH)
    return Finding(PART, True, f"{issuer.url}: reached, its keys are usable")


def aged(issuer: Issuer, held: KeyCache, now: float) -> Finding:
    """How old the held keys are; the fetcher writes them again at least every hour while it works."""
    document = held.read(issuer.url)
    if document is None:
        return Finding(
            PART,
            False,
            f"{issuer.url}: no keys held: its tokens are refused",
            "start edged-issuers; its log says why it gets none",
        )
    age = now - document.fetched_at
    return Finding(
        PART,
        age < max(OLD_S, 2 * issuer.refresh_s),
        f"{issuer.url}: keys held since {age / 3600:.1f} h",
        "edged-issuers does not get them any more: its log says why",
    )
