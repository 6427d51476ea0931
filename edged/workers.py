"""``workers = N``: the processes of one service that share its listener.

The parent binds (or inherits) the sockets and hands them to N children, watches them, starts a dead
one again, and merges their metrics. A child is the same ``edged run SERVICE`` command, told by its
environment which sockets are its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from edged import systemd
from edged.config.site import Front, Runtime
from edged.http.listen import listeners
from edged.logs import get_logger

log = get_logger("edged.workers")

LISTEN_VARIABLE = "EDGED_LISTEN"  # name=fd,fd;name=fd
WORKER_VARIABLE = "EDGED_WORKER"  # index
SCRAPE_S = 2.0
RESTART_AFTER_S = (0.1, 0.5, 2.0, 5.0)
STEADY_S = 30.0


class WorkerGroup:
    """N processes of one service."""

    def __init__(
        self,
        service: str,
        front: Front,
        runtime: Runtime,
        config_file: Path,
        *,
        inherited: list[socket.socket] | None = None,
    ) -> None:
        self.name = service
        self._front = front
        self._runtime = runtime
        self._config_file = config_file
        self._inherited = inherited
        self._processes: dict[int, asyncio.subprocess.Process] = {}

    def not_ready(self) -> str | None:
        """How many workers are missing, or None."""
        alive = sum(process.returncode is None for process in self._processes.values())
        missing = self._front.workers - alive
        return f"{missing} of {self._front.workers} workers are not running" if missing else None

    async def reload(self, _config: object) -> None:
        """Pass SIGHUP on."""
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGHUP)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        socks = listeners(self._front.listen, self._inherited)
        self.observe_path(0).parent.mkdir(parents=True, exist_ok=True)
        keepers = [tasks.create_task(self._keep(index, socks)) for index in range(self._front.workers)]
        try:
            await self._until_listening()
            yield
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            for sock in socks:
                sock.close()

    def observe_path(self, index: int) -> Path:
        """The unix socket where worker ``index`` answers /readyz and /metrics."""
        return observe_path(self._runtime, self.name, index)

    async def _keep(self, index: int, socks: list[socket.socket]) -> None:
        """Run worker ``index`` for ever; back off when it dies young."""
        deaths = 0
        while True:
            started = time.monotonic()
            process = await self._start(index, socks)
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await self._stop(process)
                raise
            deaths = 0 if time.monotonic() - started > STEADY_S else deaths + 1
            log.error("worker died", extra={"service": self.name, "worker": index, "code": code})
            await asyncio.sleep(RESTART_AFTER_S[min(deaths, len(RESTART_AFTER_S) - 1)])

    async def _start(self, index: int, socks: list[socket.socket]) -> asyncio.subprocess.Process:
        fds = [sock.fileno() for sock in socks]
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        environment[LISTEN_VARIABLE] = f"{self.name}=" + ",".join(map(str, fds))
        environment[WORKER_VARIABLE] = str(index)
        command = (sys.executable, "-m", "edged", "run", self.name, "--config", str(self._config_file))
        process = await asyncio.create_subprocess_exec(*command, env=environment, pass_fds=fds)
        self._processes[index] = process
        return process

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._runtime.stop_deadline_s + 5):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _until_listening(self) -> None:
        async with asyncio.timeout(30):
            for index in range(self._front.workers):
                while await self._ask(index, "/healthz") is None:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)

    async def pages(self) -> list[bytes]:
        """The metrics pages of the workers that answer."""
        found = await asyncio.gather(*(self._ask(i, "/metrics") for i in range(self._front.workers)))
        return [page for page in found if page is not None]

    async def _ask(self, index: int, path: str) -> bytes | None:
        connector = aiohttp.UnixConnector(str(self.observe_path(index)))
        timeout = aiohttp.ClientTimeout(total=SCRAPE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                async with session.get(f"http://worker{path}") as response:
                    return await response.read()
            except (aiohttp.ClientError, TimeoutError):
                return None


def observe_path(runtime: Runtime, service: str, index: int) -> Path:
    """Where worker ``index`` of ``service`` answers; parent and worker share the unit's directory."""
    return (systemd.runtime_directory() or runtime.run) / "workers" / f"{service}-{index}.sock"


def from_environment() -> tuple[int | None, dict[str, list[socket.socket]]]:
    """Which worker this process is (None: not one) and the sockets its parent passed."""
    index = os.environ.pop(WORKER_VARIABLE, None)
    passed: dict[str, list[socket.socket]] = {}
    for part in os.environ.pop(LISTEN_VARIABLE, "").split(";"):
        name, _, fds = part.partition("=")
        for fd in filter(None, fds.split(",")):
            os.set_inheritable(int(fd), False)
            passed.setdefault(name, []).append(socket.socket(fileno=int(fd)))
    return (int(index) if index is not None else None), passed
