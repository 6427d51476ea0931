"""Names: our own resolves, and the resolvers answer at all."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

from edged.config import Config
from edged.doctor import Finding

PART = "names"
RESOLVE_S = 5.0


async def findings(config: Config) -> list[Finding]:
    """The site's own names and those of its issuers."""
    own = [config.site.host or socket.getfqdn(), *config.site.aliases]
    issuers = [urlsplit(issuer.url).hostname or "" for issuer in config.issuers if issuer.jwks_file is None]
    return list(await asyncio.gather(*(resolved(name) for name in dict.fromkeys([*own, *issuers]) if name)))


async def resolved(name: str) -> Finding:
    """Whether ``name`` has an address."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (TimeoutError, OSError) as error:
        why = str(error) or f"no answer within {RESOLVE_S:.0f} s"
        return Finding(PART, False, f"{name}: {why}", "look at /etc/resolv.conf, the resolvers, and the zone")
    return Finding(PART, True, f"{name}: {', '.join(sorted({str(item[4][0]) for item in found}))}")
