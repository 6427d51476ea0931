"""Asking several upstreams in order; the next one as well when the first is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from edged.config.cache import UpstreamLimits
from edged.errors import EdgeError, NotFound, Upstream, UpstreamTimeout
from services.cache.upstream.exchange import Reply
from services.cache.upstream.origin import Origin

Judge = Callable[[Reply], EdgeError | None]


def in_order(origins: Sequence[Origin]) -> list[Origin]:
    """As configured, those that rest last: a last resort is better than none."""
    return sorted(origins, key=lambda origin: origin.rests)


def judge_object(reply: Reply) -> EdgeError | None:
    """None for an answer worth reading; else why this upstream is passed over."""
    if reply.status in (200, 206):
        return None
    if reply.status in (404, 410):
        return NotFound("no upstream has it")
    return Upstream("an upstream refused", detail=f"status {reply.status}")


class Race:
    """One question to several origins. ``first()`` may be called again: it goes on with those left."""

    def __init__(
        self, origins: Sequence[Origin], limits: UpstreamLimits, judge: Judge = judge_object
    ) -> None:
        self._left = in_order(origins)
        self._limits = limits
        self._judge = judge
        self._repeated: set[Origin] = set()
        self.errors: list[EdgeError] = []

    def again(self, origin: Origin) -> None:
        """Its body broke off: it may be asked once more, after the others."""
        if origin not in self._repeated:
            self._repeated.add(origin)
            self._left.append(origin)

    async def first(self, path: bytes, headers: bytes, deadline: float) -> tuple[Origin, Reply]:
        """The first good answer before ``deadline`` (loop time). Raises NotFound or Upstream."""
        running: dict[asyncio.Task[Reply], Origin] = {}
        try:
            async with asyncio.timeout_at(deadline):
                if (found := await self._answer(running, path, headers)) is not None:
                    return found
        except TimeoutError:
            for origin in running.values():
                origin.failed("no answer in time")
            self.errors.append(UpstreamTimeout("no upstream answered in time"))
        finally:
            for task in running:
                task.add_done_callback(_drop)
                task.cancel()
        raise self.verdict()

    def verdict(self) -> EdgeError:
        """What to tell the client: the upstreams' faults together. 404 only when nobody failed otherwise."""
        others = [error for error in self.errors if not isinstance(error, NotFound)]
        if others:
            return others[-1]
        return self.errors[-1] if self.errors else Upstream("no upstream is left to ask")

    async def _answer(
        self, running: dict[asyncio.Task[Reply], Origin], path: bytes, headers: bytes
    ) -> tuple[Origin, Reply] | None:
        while self._left or running:
            if self._left:
                origin = self._left.pop(0)
                if not self._left and not running:
                    return await self._alone(origin, path, headers)
                origin.figures.raced += bool(running)
                running[asyncio.ensure_future(origin.get(path, headers))] = origin
            patience_s = self._limits.slow_s if self._left else None
            done, _ = await asyncio.wait(running, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                origin = running.pop(task)
                if (reply := self._taken(origin, task)) is not None:
                    return origin, reply
        return None

    async def _alone(self, origin: Origin, path: bytes, headers: bytes) -> tuple[Origin, Reply] | None:
        """The last one: nobody to race it with, so no task of its own."""
        try:
            reply = await origin.get(path, headers)
        except asyncio.CancelledError:
            origin.failed("no answer in time")
            raise
        except EdgeError as error:
            origin.failed(str(error))
            self.errors.append(error)
            return None
        return (origin, reply) if self._good(origin, reply) else None

    def _taken(self, origin: Origin, task: asyncio.Task[Reply]) -> Reply | None:
        try:
            reply = task.result()
        except EdgeError as error:
            origin.failed(str(error))
            self.errors.append(error)
            return None
        return reply if self._good(origin, reply) else None

    def _good(self, origin: Origin, reply: Reply) -> bool:
        problem = self._judge(reply)
        if problem is None:
            return True
        reply.close()
        if not isinstance(problem, NotFound):
            origin.failed(str(problem))
        self.errors.append(problem)
        return False


def _drop(task: asyncio.Task[Reply]) -> None:
    """A loser of the race: its answer is not wanted any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
