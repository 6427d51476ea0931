"""Wiring of the root:// view: keys for the servers, verdicts for their gates, probes and metrics.

The servers themselves are kept by ``keeper`` (embedded) or by systemd (``edged xrootd exec``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from edged.config import Config
from edged.errors import EdgeError
from edged.identity import keycache
from edged.identity.client import IdentityClient
from edged.identity.keycache import KeyCache
from edged.identity.words import ServiceName
from edged.lifecycle import Background, Service
from edged.logs import get_logger
from edged.services import Context
from services.storage.xrootd import keystore, planning
from services.storage.xrootd.gate import Gate
from services.storage.xrootd.keystore import KeptKeys
from services.storage.xrootd.passage import Passage
from services.storage.xrootd.plan import Plan
from services.storage.xrootd.probekey import ProbeKey
from services.storage.xrootd.probing import Probing
from services.storage.xrootd.render import PROBE_ISSUER
from services.storage.xrootd.reports import Reports

log = get_logger("services.storage.xrootd")

LOOK_S = 1.0  # a rotated or removed key is with the servers within this
PROBE_KEY = "probe.key"


def build(config: Config, context: Context) -> list[Service]:
    """The services of [storage.xrootd]; none when it is not configured."""
    if config.storage is None or config.storage.xrootd is None:
        return []
    identity = IdentityClient(config, ServiceName("storage"))
    return [identity, View(config, identity)]


class View:
    """What the servers need of us, for as long as it is entered."""

    name = "xrootd"

    def __init__(self, config: Config, identity: IdentityClient) -> None:
        self._config = config
        self._cache = KeyCache(keycache.directory(config.runtime.state))
        self._probe_key = ProbeKey.make()
        self._missing: str | None = None
        self._plan = self._look(config)
        self._gate = Gate(self._plan, identity, self._probe_key, _passage(config))
        self._reports = Reports(self._plan.settings.report_port)
        self._probing = Probing(config, self._plan, self._probe_key, self._gate)
        self._written: dict[str, KeptKeys] = {}

    def not_ready(self) -> str | None:
        """None while every server answers its probe."""
        return self._missing or self._probing.not_ready()

    @property
    def addresses(self) -> list[str]:
        """What clients are told."""
        return [f"{self._plan.host}:{self._plan.settings.port}"] if self._plan.instances else []

    async def reload(self, config: Config) -> None:
        """Take the new configuration; the keeper does the same with the servers."""
        self._plan = self._look(config)
        self._config = config
        self._write_keys()
        await self._gate.adopt(self._plan, _passage(config))
        self._probing.adopt(config, self._plan)
        self._reports.known = frozenset(one.name for one in self._plan.instances)
        (self._plan.directory / planning.RELOAD).touch()

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        directory = self._plan.directory
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._probe_key.save(directory / PROBE_KEY)
        self._write_keys()
        self._reports.known = frozenset(one.name for one in self._plan.instances)
        async with AsyncExitStack() as stack:
            background = await stack.enter_async_context(Background())
            await stack.enter_async_context(self._gate.running(tasks))
            await stack.enter_async_context(self._reports.running())
            background.create_task(self._keep_keys())
            background.create_task(self._probing.run())
            yield
            (directory / PROBE_KEY).unlink(missing_ok=True)

    def _look(self, config: Config) -> Plan:
        """The plan; what is missing here is readiness's to tell, and no reason to stop WebDAV."""
        try:
            found, _ = planning.make(config)
            self._missing = "; ".join(f"{label}: {why}" for label, why in found.refused.items()) or None
        except EdgeError as error:
            self._missing = str(error)
            found = planning.of(config, multiuser=False)
        return found

    async def _keep_keys(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._write_keys()

    def _write_keys(self) -> None:
        """The keys that count now, written when they changed: small files, on a local disk."""
        issuers = [issuer for found in self._plan.issuers.values() for issuer in found]
        now = time.time()
        keys = keystore.current(self._cache, issuers, now)
        before = self._written.get(PROBE_ISSUER)
        own = before if before and before.expires - now > 3600 else keystore.own(self._probe_key.jwk())
        keys[PROBE_ISSUER] = own
        target = self._plan.keys / keystore.FILE
        if keys == self._written and target.exists():
            return
        try:
            keystore.write(self._plan.keys, keys)
        except OSError as error:
            log.error("keys not written", extra={"file": str(target), "reason": str(error)})  # noqa: TRY400
            return
        self._written = keys


def _passage(config: Config) -> Passage | None:
    """Who judges for the forwarding proxy, where there is one."""
    settings = config.storage.xrootd if config.storage else None
    return Passage(config) if settings is not None and settings.proxy is not None else None


def probe_key_file(plan: Plan) -> Path:
    """Where the running view left the key of its probes."""
    return plan.directory / PROBE_KEY
