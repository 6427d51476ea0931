"""Starting, watching and stopping the services of one process.

A service has a name and ``running(tasks)``, an async context manager: *entered* means listening,
*left* means nothing remains. If a background task dies, everything stops and the process exits
non-zero, so that systemd restarts it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import Context
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from edged import systemd
from edged.errors import EdgeError, Unavailable
from edged.logs import get_logger

if TYPE_CHECKING:
    from edged.config import Config

log = get_logger("edged.lifecycle")

T = TypeVar("T")


class Service(Protocol):
    """One part of the suite."""

    name: str

    def running(self, tasks: asyncio.TaskGroup) -> AbstractAsyncContextManager[None]:
        """Serve for as long as the context is entered. Background work goes into ``tasks``."""
        ...


@runtime_checkable
class Reloading(Protocol):
    """A service that takes a new configuration without dropping a connection."""

    async def reload(self, config: Config) -> None: ...


@runtime_checkable
class Reporting(Protocol):
    """A service that knows whether it can do its work."""

    def not_ready(self) -> str | None:
        """None when ready, else why not, in words an operator can act on."""
        ...


@runtime_checkable
class Listening(Protocol):
    """A service with listeners; known once it runs."""

    name: str
    addresses: list[str]


class Background:
    """A service's own background tasks: cancelled when its context is left, fatal when one fails."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[Any]] = set()

    def create_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` until it ends or the context is left. It has no request id of whoever began it."""
        task = self._group.create_task(work, context=Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end though whoever asked for it may go away in the middle of it.

        Raises what ``work`` raises; Unavailable when the service stops first.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda it: it.exception())  # perhaps nobody is left to hear of it
        task = self._group.create_task(_tell(work, done))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(done)

    async def __aenter__(self) -> Background:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)


async def _tell(work: Coroutine[Any, Any, T], done: asyncio.Future[T]) -> None:
    """The outcome of ``work`` goes into ``done`` and nowhere else."""
    try:
        result = await work
    except asyncio.CancelledError:
        done.set_exception(Unavailable("edged is stopping"))
        raise
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(result)


@dataclass(slots=True)
class Health:
    """What the readiness endpoint tells: started, stopping, and each part's own word."""

    services: Sequence[Service] = ()
    started: bool = False
    stopping: bool = False
    started_at: float = field(default_factory=time.time)

    def told(self) -> str:
        """For the service manager's status line."""
        problems = self.problems()
        return "; ".join(f"{part}: {why}" for part, why in problems.items()) if problems else "ready"

    def problems(self) -> dict[str, str]:
        """Part name → why it is not ready; empty means ready."""
        if not self.started:
            return {"edged": "starting"}
        if self.stopping:
            return {"edged": "stopping"}
        return {
            service.name: why
            for service in self.services
            if isinstance(service, Reporting) and (why := service.not_ready()) is not None
        }


async def run(
    services: Sequence[Service],
    *,
    health: Health,
    stop: asyncio.Event | None = None,
    load_config: Callable[[], Config] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Run the services until SIGTERM or SIGINT (or ``stop`` is set); SIGHUP re-reads the configuration.

    Services start in the order given and stop in reverse. Raises the exception group of a part that died.
    """
    stop = stop or asyncio.Event()
    health.services = services
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if load_config is not None:
            changed = asyncio.Event()
            loop.add_signal_handler(signal.SIGHUP, changed.set)
            reloader = tasks.create_task(_reload_on(changed, services, load_config))
            stack.callback(reloader.cancel)
        for service in services:
            await stack.enter_async_context(service.running(tasks))
            log.info("service started", extra={"service": service.name})
        health.started = True
        if on_ready is not None:
            on_ready()
        systemd.notify("READY=1", status=health.told())
        watchdog = tasks.create_task(_watchdog(health))
        stack.callback(watchdog.cancel)
        await stop.wait()
        health.stopping = True
        systemd.notify("STOPPING=1", status="finishing what was accepted")
        log.info("stopping")


async def _reload_on(changed: asyncio.Event, services: Sequence[Service], load: Callable[[], Config]) -> None:
    """Apply a new configuration at each SIGHUP; a broken file changes nothing and is logged."""
    while True:
        await changed.wait()
        changed.clear()
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = await asyncio.to_thread(load)
            for service in services:
                if isinstance(service, Reloading):
                    await service.reload(config)
            log.info("configuration reloaded")
        except EdgeError as error:
            log.error("reload refused; the running configuration stays", extra={"reason": str(error)})  # noqa: TRY400
        systemd.notify("READY=1")


async def _watchdog(health: Health) -> None:
    """Tell systemd we are alive, from the loop itself: a blocked loop stops the pings."""
    period = systemd.watchdog_period_s()
    if period is None:
        return
    while True:
        systemd.notify("WATCHDOG=1", status=health.told())
        await asyncio.sleep(period)
