"""One execution for many askers: the work goes on when the first asker leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Work under way, by key."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Future[T]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Work runs in ``tasks``."""
        self._tasks = tasks

    async def run(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """The result of ``work``, or of the same work somebody else already asked for."""
        outcome = self._running.get(key)
        if outcome is None:
            assert self._tasks is not None
            outcome = self._running[key] = asyncio.get_running_loop().create_future()
            outcome.add_done_callback(_seen)
            self._tasks.create_task(self._work(key, work, outcome))
        return await asyncio.shield(outcome)

    async def _work(self, key: str, work: Callable[[], Awaitable[T]], outcome: asyncio.Future[T]) -> None:
        try:
            outcome.set_result(await work())
        except Exception as error:
            outcome.set_exception(error)
        finally:
            self._running.pop(key, None)
            outcome.cancel()


def _seen(outcome: asyncio.Future[T]) -> None:
    """The askers may all have left: then nobody else reads the exception."""
    if not outcome.cancelled():
        outcome.exception()
