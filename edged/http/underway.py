"""Requests under way, by whom: a ban ends those that last, like streams, uploads and long polls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edged.errors import Denied
from edged.identity.client import Verdicts
from edged.identity.words import Principal, Verdict


class UnderWay:
    """The requests of one API."""

    def __init__(self, identity: Verdicts) -> None:
        self._held: dict[_Held, None] = {}
        identity.on_ban(self._banned)

    @contextmanager
    def of(self, verdict: Verdict) -> Iterator[None]:
        """The current task answers a request of this caller while entered. Raises Denied when a ban ends it."""
        task = asyncio.current_task()
        assert task is not None
        held = _Held(task, verdict.principal)
        self._held[held] = None
        try:
            yield
        except asyncio.CancelledError:
            if held.banned and task.uncancel() == 0:
                raise Denied("this identity is banned at this site") from None
            raise
        finally:
            del self._held[held]

    def _banned(self, covers: Callable[[Principal], bool], _keep_jobs: bool) -> None:
        for held in tuple(self._held):
            if covers(held.principal) and not held.banned:
                held.banned = True
                held.task.cancel()


class _Held:
    __slots__ = ("banned", "principal", "task")

    def __init__(self, task: asyncio.Task[object], principal: Principal) -> None:
        self.task, self.principal, self.banned = task, principal, False
