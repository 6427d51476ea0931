"""What a service tells of its own work on /summary of its health listener: who is using it, in numbers.

More than metrics may say (label sets are closed, usage has days), less than its API: no names of users.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar, runtime_checkable

import msgspec

from edged.usage import Usage

T = TypeVar("T")
USAGE_DAYS = 30
USAGE_FRESH_S = 2.0
SHARE = 50  # of the time, one in so many goes into asking


class JobCount(msgspec.Struct, frozen=True, array_like=True):
    """How many jobs of a VO in a queue are in a state."""

    vo: str
    queue: str
    state: str
    count: int


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition of a batch system, with its free cores and, by GRES name, its GPUs (total, free)."""

    batch: str
    name: str
    up: bool
    cpus: int
    cpus_free: int
    gpus: dict[str, tuple[int, int]] = {}


class Summary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One service's. ``usage`` covers the last ``USAGE_DAYS`` days; ``troubles`` is what could not be told."""

    jobs: list[JobCount] = []
    partitions: list[Partition] = []
    drained: list[str] = []
    usage: list[Usage] = []
    troubles: list[str] = []


@runtime_checkable
class Summarizing(Protocol):
    """A service that tells of its work. ``summary`` answers from memory or from its own database."""

    name: str

    async def summary(self) -> Summary: ...


class Kept(Generic[T]):
    """An answer that costs something: asked again when it is ``fresh_s`` old, later when asking takes long."""

    def __init__(self, ask: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._ask, self._fresh_s = ask, fresh_s
        self._held: tuple[float, T] | None = None  # good until (monotonic seconds), the answer
        self._lock = asyncio.Lock()

    async def get(self) -> T:
        """The answer. Raises what asking raised."""
        async with self._lock:
            began = time.monotonic()
            if self._held is None or began >= self._held[0]:
                answer = await self._ask()
                ended = time.monotonic()
                self._held = (ended + max(self._fresh_s, SHARE * (ended - began)), answer)
            return self._held[1]
