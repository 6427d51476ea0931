"""A whole identity in one test: a throw-away issuer, the fetcher, the signer, and clients of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from edged.config import Config, parse
from edged.errors import Unavailable
from edged.identity.client import IdentityClient
from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import AUDIENCE, ThrowAwayIssuer
from edged.identity.words import ServiceName
from edged.lifecycle import Service
from edged.services import Context
from services.identity.service import issuers, signer

DEADLINE_S = 10.0


def tree(directory: Path, *trusted: ThrowAwayIssuer, **identity: Any) -> dict[str, Any]:
    """A configuration that trusts these issuers, the first for VO cms, the next for vo1 …"""
    names = ["cms", *(f"vo{index}" for index in range(1, len(trusted)))]
    return {
        "site": {"name": "TEST"},
        "runtime": {"state": str(directory / "state"), "run": str(directory / "run")},
        "identity": identity,
        "issuer": [
            {"url": one.url, "audience": [AUDIENCE], "vo": vo, "ca_file": str(one.ca.file)}
            for vo, one in zip(names, trusted, strict=True)
        ],
        "mapping": [
            {"issuer": one.url, "groups": ["/cms/production"], "account": f"{vo}prd", "class": "production"}
            for vo, one in zip(names, trusted, strict=True)
        ]
        + [
            {"issuer": one.url, "account": f"{vo}user", "grants": ["compute.read", "compute.create"]}
            for vo, one in zip(names, trusted, strict=True)
        ],
        "storage": {"export": [{"prefix": "/cms", "root": "/srv/cms", "vo": "cms"}]},
    }


class Identity:
    """The running services; stop and start them again at will."""

    def __init__(self, config: Config, tasks: asyncio.TaskGroup) -> None:
        self.config = config
        self._tasks = tasks
        self._parts: dict[str, AsyncExitStack] = {}
        self.services: dict[str, list[Service]] = {}

    async def start(self, *names: str) -> None:
        """Start ``signer`` or ``issuers``."""
        for name in names:
            build = {"signer": signer, "issuers": issuers}[name]
            stack = self._parts[name] = AsyncExitStack()
            self.services[name] = build(self.config, Context())
            for service in self.services[name]:
                await stack.enter_async_context(service.running(self._tasks))

    async def stop(self, *names: str) -> None:
        """Stop what was started."""
        for name in names:
            await self._parts.pop(name).aclose()

    async def keys_known(self) -> None:
        """Wait until the signer has keys."""
        keyring = next(s for s in self.services["signer"] if s.name == "identity-keyring")
        await until(lambda: keyring.not_ready() is None)  # type: ignore[attr-defined]

    @asynccontextmanager
    async def client(self, service: str = "jobs") -> AsyncIterator[IdentityClient]:
        """A front's client, listening."""
        client = IdentityClient(self.config, ServiceName(service))
        async with client.running(self._tasks):
            yield client

    async def close(self) -> None:
        """Stop everything."""
        await self.stop(*reversed(tuple(self._parts)))


@asynccontextmanager
async def identity(config: Config | dict[str, Any], *, start: bool = True) -> AsyncIterator[Identity]:
    """Identity with its fetcher, started and with keys, unless ``start`` is False."""
    async with asyncio.TaskGroup() as tasks:
        site = Identity(config if isinstance(config, Config) else parse(config), tasks)
        try:
            if start:
                await site.start("issuers", "signer")
                await site.keys_known()
            yield site
        finally:
            await site.close()


@asynccontextmanager
async def issuer(directory: Path, **options: Any) -> AsyncIterator[ThrowAwayIssuer]:
    """A running issuer with its own CA."""
    async with ThrowAwayIssuer(ThrowAwayCa(directory), **options).running() as running:
        yield running


async def until(holds: Any, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition that no event tells, looking every 5 ms; fails at the deadline."""
    try:
        async with asyncio.timeout(deadline_s):
            while not holds():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise Unavailable(f"not so within {deadline_s} s") from None
