"""The background probe: every server, with a real client, for readiness and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from edged import metrics
from edged.config import Config
from edged.logs import get_logger
from services.storage.xrootd import judging, probe
from services.storage.xrootd.gate import Gate
from services.storage.xrootd.greeting import greet, has_client
from services.storage.xrootd.plan import Instance, Plan, Role
from services.storage.xrootd.probe import Outcome, Wish
from services.storage.xrootd.probekey import ProbeKey

log = get_logger("services.storage.xrootd.probing")

DEADLINE_S = 12.0  # a loaded server; one that hangs is told as missing after this

UP = metrics.gauge("xrootd_probe_up", "1 while the server answered its last probe.", ("server",))
SECONDS = metrics.histogram("xrootd_probe_seconds", "Steps of the probes.", ("step",))
FAILURES = metrics.counter("xrootd_probe_failures", "Probes that failed.", ("server", "step"))


class Probing:
    """Knows how each server did last."""

    def __init__(self, config: Config, plan: Plan, key: ProbeKey, gate: Gate) -> None:
        self._config = config
        self._plan = plan
        self._key = key
        self._gate = gate
        self._ask = probe.ask if has_client() else greet
        self._last: dict[str, Outcome | None] = {}  # None: all steps worked
        self._again = asyncio.Event()

    def adopt(self, config: Config, plan: Plan) -> None:
        """A new configuration."""
        self._config, self._plan = config, plan
        self._last.clear()
        self._again.set()

    def not_ready(self) -> str | None:
        """Which servers did not answer, and to what."""
        troubles: list[str] = []
        for instance in self._plan.instances:
            if instance.role is Role.PROXY:
                continue
            if instance.name not in self._last:
                troubles.append(f"{instance.name}: not probed yet")
            elif (failed := self._last[instance.name]) is not None:
                troubles.append(f"{instance.name}: {failed.step}: {failed.said}")
        return "; ".join(troubles) or None

    async def run(self) -> None:
        """Soon after the start, then every ``probe_s``; quickly again while something fails."""
        if self._ask is greet:
            log.warning("no XRootD for Python (edged[xrootd]): servers are only asked whether they answer")
        pause = 0.5
        while True:
            self._again.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._again.wait()
            except TimeoutError:
                pass
            async with asyncio.TaskGroup() as probes:  # one that hangs delays the word on no other
                for instance in self._plan.instances:
                    if instance.role is not Role.PROXY:
                        probes.create_task(self._one(instance))
            pause = (
                self._plan.settings.probe_s
                if self.not_ready() is None
                else min(2.0, self._plan.settings.probe_s)
            )

    async def _one(self, instance: Instance) -> None:
        began = time.monotonic()
        failed: Outcome | None = None
        for wish in wishes(self._config, self._plan, instance, self._key):
            outcomes = await self._ask(wish, deadline_s=DEADLINE_S)
            for outcome in outcomes:
                SECONDS.labels(outcome.step).observe(outcome.seconds)
            failed = failed or next((outcome for outcome in outcomes if not outcome.ok), None)
        UP.labels(instance.name).set(failed is None)
        if failed is not None:
            FAILURES.labels(instance.name, failed.step).inc()
            log.warning(
                "probe failed", extra={"instance": instance.name, "step": failed.step, "said": failed.said}
            )
        elif self._last.get(instance.name, failed) is not None or instance.name not in self._last:
            log.info("server answers", extra={"instance": instance.name, "seconds": time.monotonic() - began})
        self._last[instance.name] = failed


def wishes(config: Config, plan: Plan, instance: Instance, key: ProbeKey) -> Iterator[Wish]:
    """What to probe of ``instance``. A redirector is asked for a path of each of its servers."""
    for one in instance.exports:
        issuers = plan.issuers[one.vo]
        if not issuers:
            continue
        prefix = one.prefix.rstrip("/")
        yield Wish(
            url=f"roots://{plan.host}:{instance.port}",
            token=key.token(issuers[0].audience[0]),
            path=one.prefix,
            directory=f"{prefix}/{judging.PROBE_DIRECTORY}",
            ca_file=str(config.tls.ca_file or ""),
            ca_directory=str(config.tls.ca_directory or ""),
        )
        if instance.role is not Role.MANAGER:
            return
