"""Costly steps of many connections, such as TLS handshakes: one a round of the loop, their sources by turns.

A thousand clients of one address that begin at once wait behind each other. Whoever comes from elsewhere waits
for one step of each source that is waiting, and open connections for one step at all (tests/bench/http_flood.py).
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._due = False

    async def turn(self, source: str) -> None:
        """Return when it is the caller's turn: one step of at most some milliseconds, without an await."""
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        self._waiting.setdefault(source, deque()).append(mine)
        if not self._due:
            self._due = True
            loop.call_soon(self._next)
        await mine

    def _next(self) -> None:
        """The oldest of the source that has waited longest; who has given up takes no turn."""
        while self._waiting:
            source, queue = next(iter(self._waiting.items()))
            del self._waiting[source]
            mine = queue.popleft()
            if queue:
                self._waiting[source] = queue  # behind the others
            if not mine.done():
                mine.set_result(None)
                break
        self._due = bool(self._waiting)
        if self._due:
            asyncio.get_running_loop().call_soon(self._next)
