"""One lane per export on a channel: a file server that hangs holds the places of its own lane, no others.

A hung call cannot be taken back: the worker's thread waits in the kernel until the server answers. So a
call that its caller gave up keeps its place, and once nothing was answered for a while new calls are
refused at once, but for one now and then that finds out whether the server is back.
"""

from __future__ import annotations

import asyncio
from collections import deque

from edged.accounts import messages
from edged.errors import Busy, EdgeError, Unavailable

HUNG_S = 5.0
PROBE_S = 2.0
PATIENCE_S = 60.0
# what may take long on a healthy file system, and so says nothing about it
_LONG = frozenset({messages.List, messages.Remove, messages.Sweep, messages.Commit})


class Lane:
    """The calls of one export under way. Times are ``time.monotonic()``; ``places``: most at once."""

    __slots__ = ("_label", "_places", "_probed", "_quick", "_running", "_since", "_waiting")

    def __init__(self, label: str, places: int) -> None:
        self._label = label
        self._places = places
        self._running = 0
        self._quick = 0  # of them, those that a healthy file system answers at once
        self._since = 0.0  # the last answer, or when the first of the quick ones was sent
        self._probed = 0.0
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()  # oldest first, until when

    def silent_s(self, now: float) -> float:
        """For how long calls that should be quick have got no answer; 0 when there are none."""
        return now - self._since if self._quick else 0.0

    async def enter(self, kind: object, now: float, deadline_s: float = 60.0) -> float:
        """Take a place, waiting for one if need be; how long the answer may take, at most ``deadline_s``.

        Raises Unavailable when the file system hangs. Who finds out whether it is back waits PROBE_S only.
        """
        if self._quick and now - self._since > HUNG_S:
            if self._running >= self._places or now - self._probed < PROBE_S:
                raise Unavailable(
                    "the file system does not answer", detail=f"{self._label}: {now - self._since:.0f} s"
                )
            self._probed = now
            deadline_s = min(deadline_s, PROBE_S)
        if self._running >= self._places:
            await self._turn(now)
        else:
            self._running += 1
        if kind not in _LONG:
            if not self._quick:
                self._since = now
            self._quick += 1
        return deadline_s

    async def _turn(self, now: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, now + PATIENCE_S))
        try:
            await turn
        except asyncio.CancelledError:
            # the place came at the same moment: hand it on
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._free()
            raise

    def leave(self, kind: object, now: float) -> None:
        """The worker answered."""
        self._since = now
        if kind not in _LONG:
            self._quick -= 1
        self._free()

    def refuse_waiting(self, now: float) -> None:
        """Tell those who wait for a place of a hung file system, or for too long; called every second."""
        if self.silent_s(now) > HUNG_S:
            self.close("the file system does not answer")
        while self._waiting and self._waiting[0][1] < now:
            self._refuse(Busy("too many long calls on one export", detail=self._label))

    def close(self, why: str) -> None:
        """No place will become free: tell all who wait."""
        while self._waiting:
            self._refuse(Unavailable(why, detail=self._label))

    def _refuse(self, error: EdgeError) -> None:
        turn, _ = self._waiting.popleft()
        if not turn.done():
            turn.set_exception(error)

    def _free(self) -> None:
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the place changes hands
                return
        self._running -= 1
