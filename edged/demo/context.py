"""What a service's demo steps get: where the daemons are, tokens, and how to tell what happened."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edged.client import ApiClient, connected
from edged.config import Config

T = TypeVar("T")
DEADLINE_S = 30.0


@dataclass(slots=True)
class Step:
    """One line of the walk. ``result`` is what came back, in a few words."""

    title: str
    result: str = ""
    started: float = field(default_factory=time.perf_counter)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Raises AssertionError, which ends the demonstration with status 1."""
        if not holds:
            raise AssertionError(otherwise)


@dataclass(slots=True)
class Demo:
    """The running demonstration. ``listening``: service name → addresses. ``token(*scopes)`` signs one."""

    scratch: Path
    config: Config
    listening: dict[str, list[str]]
    ca_file: Path
    token: Callable[..., str]
    write: Callable[[str], None]
    batch: str = "local"
    count: int = 0

    def url(self, service: str) -> str:
        """The service's base URL."""
        section = getattr(self.config, service, None)
        scheme = "https" if section is None or getattr(section, "tls", True) else "http"
        return f"{scheme}://{self.listening[service][0]}"

    def tls(self) -> ssl.SSLContext:
        """A context that trusts the demo's own CA."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    @asynccontextmanager
    async def api(self, service: str, token: str) -> AsyncIterator[ApiClient]:
        """A client of one service."""
        async with connected(self.url(service), self.ca_file, token) as client:
            yield client

    @asynccontextmanager
    async def step(self, title: str) -> AsyncIterator[Step]:
        """Time one step and print its line when it is done; an error is printed and raised."""
        self.count += 1
        step = Step(title)
        try:
            yield step
        except BaseException as error:
            self.write(f"{self.count:3}  {title:34} FAILED: {error}")
            raise
        took = (time.perf_counter() - step.started) * 1000
        self.write(f"{self.count:3}  {title:34} {took:8.1f} ms   {step.result}")

    async def until(self, ask: Callable[[], Awaitable[T]], what: str) -> T:
        """The first true answer of ``ask``. Raises AssertionError naming ``what`` when none came in time."""
        end = time.monotonic() + DEADLINE_S
        while not (answer := await ask()):
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {DEADLINE_S:.0f} s")
            await asyncio.sleep(0.1)
        return answer

    def heading(self, text: str) -> None:
        """A title between parts."""
        self.write(f"\n{text}")
