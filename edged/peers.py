"""The other processes of this edge, by their local health listeners: who they are and what they say.

What the portal and ``edged doctor`` know of running services comes from here and never from their databases.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import msgspec

from edged.config import Config
from edged.units import site

ASK_S = 5.0
MAX_ANSWER = 16 << 20


@dataclass(frozen=True, slots=True)
class Peer:
    """One process and where it tells of itself: ``host:port`` or a socket's path."""

    name: str
    address: str


class Ready(msgspec.Struct, frozen=True):
    """The answer of /readyz."""

    ready: bool
    not_ready: dict[str, str] = {}
    version: str = ""


@dataclass(frozen=True, slots=True)
class Readiness:
    """A process and its answer; None: there was none."""

    name: str
    address: str
    answered: Ready | None


def configured(config: Config) -> list[Peer]:
    """Who should run on this edge: the one process of ``edged run``, or one of each configured service.

    ``run/listening.json`` is written by the former only, and tells its address.
    """
    told = config.runtime.run / "listening.json"
    try:
        listening = msgspec.json.decode(told.read_bytes(), type=dict[str, list[str]])
    except (OSError, msgspec.MsgspecError):
        listening = {}
    if listening.get("observe"):
        return [Peer("edged", listening["observe"][0])]
    return [
        Peer(name, config.observe.services[name])
        for name in site.observed(config)
        if name in config.observe.services
    ]


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client for asking peers; never a proxy, never a cookie."""
    timeout = aiohttp.ClientTimeout(total=ASK_S)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as made:
        yield made


async def ask(session: aiohttp.ClientSession, peer: Peer, path: str) -> bytes | None:
    """The answer to ``GET path``, whatever its status; None when there is none or it is absurdly long."""
    if peer.address.startswith("/"):
        async with (
            aiohttp.UnixConnector(peer.address) as connector,
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=ASK_S)) as own,
        ):
            return await _get(own, f"http://peer{path}")
    return await _get(session, f"http://{peer.address}{path}")


async def _get(session: aiohttp.ClientSession, url: str) -> bytes | None:
    try:
        async with session.get(url, allow_redirects=False) as response:
            body = await response.content.read(MAX_ANSWER + 1)
            while len(body) <= MAX_ANSWER and (more := await response.content.read(MAX_ANSWER)):
                body += more
            return body if len(body) <= MAX_ANSWER else None
    except (aiohttp.ClientError, TimeoutError):
        return None


async def readiness(session: aiohttp.ClientSession, peer: Peer) -> Readiness:
    """What /readyz says."""
    raw = await ask(session, peer, "/readyz")
    try:
        answered = msgspec.json.decode(raw, type=Ready) if raw is not None else None
    except msgspec.MsgspecError:
        answered = None
    return Readiness(peer.name, peer.address, answered)
