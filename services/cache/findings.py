"""For ``edged doctor``: every stratum and origin answers from here."""

from __future__ import annotations

import asyncio

import aiohttp

from edged.config import Config
from edged.doctor import Finding
from edged.errors import words_of

PART = "upstream"
ASK_S = 8.0
ADVICE = "look at the firewall and the server; the cache asks the others of the list meanwhile"


async def findings(config: Config) -> list[Finding]:
    """One for each upstream of each repository and destination; nothing without [cache]."""
    if config.cache is None:
        return []
    wanted = [
        f"{stratum}/cvmfs/{repository.name}/.cvmfspublished"
        if not repository.name.startswith("*")
        else f"{stratum}/"
        for repository in config.cache.repositories
        for stratum in repository.stratums
    ]
    wanted += [f"{url}/" for destination in config.cache.destinations for url in destination.bases]
    timeout = aiohttp.ClientTimeout(total=ASK_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        return list(await asyncio.gather(*(_asked(session, url) for url in dict.fromkeys(wanted))))


async def _asked(session: aiohttp.ClientSession, url: str) -> Finding:
    """A manifest must be there; of a bare server any answer below 500 shows that it lives."""
    try:
        async with session.get(url) as response:
            limit = 400 if url.endswith(".cvmfspublished") else 500
            return Finding(PART, response.status < limit, f"{url}: status {response.status}", ADVICE)
    except (aiohttp.ClientError, TimeoutError) as error:
        return Finding(PART, False, f"{url}: {words_of(error)}", ADVICE)
