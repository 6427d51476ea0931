"""Readiness of many sockets at the price of one: an epoll set of our own inside the event loop.

The loop watches only the epoll descriptor. Sockets are put in once, edge-triggered for both
directions, and leave by being closed, so a tunnel costs two epoll_ctl calls in its whole life where
``add_reader``/``add_writer`` would pay for each change of mind. Held by tests/bench/egress_proxy.py.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable

from edged.logs import get_logger

log = get_logger("services.egress.poller")

Handler = Callable[[int], None]
Work = Callable[[], None]

IN, OUT, HUP, ERR, RDHUP = (
    select.EPOLLIN,
    select.EPOLLOUT,
    select.EPOLLHUP,
    select.EPOLLERR,
    select.EPOLLRDHUP,
)
GONE = HUP | ERR | RDHUP
EDGE = IN | OUT | RDHUP | select.EPOLLET
LEVEL = IN

_BATCH = 512


class Poller:
    """``handlers[fd](events)`` is called when something happened to ``fd``.

    An event may be stale: a number closed and opened again within one batch. Handlers therefore act
    by trying, and take EAGAIN for an answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self.handlers: dict[int, Handler] = {}
        self._again: deque[Work] = deque()
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def add(self, fd: int, handler: Handler, events: int = EDGE) -> None:
        """Watch ``fd`` until ``forget`` or, for the kernel's side, until it is closed."""
        self.handlers[fd] = handler
        self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        """To be called right before ``fd`` is closed: closing takes it out of the kernel's set."""
        self.handlers.pop(fd, None)

    def pause(self, fd: int) -> None:
        """Stop watching a descriptor that stays open."""
        self._epoll.unregister(fd)

    def again(self, work: Work) -> None:
        """Run ``work`` after everybody else had a turn."""
        if not self._again:
            self._loop.call_soon(self._continue)
        self._again.append(work)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self.handlers.clear()
        self._again.clear()

    def _dispatch(self) -> None:
        handlers = self.handlers
        for fd, events in self._epoll.poll(0, _BATCH):
            handler = handlers.get(fd)
            if handler is None:
                continue
            try:
                handler(events)
            except Exception:  # one connection's fault must not stop all others
                log.exception("connection handler failed")

    def _continue(self) -> None:
        for _ in range(len(self._again)):
            work = self._again.popleft()
            try:
                work()
            except Exception:
                log.exception("connection handler failed")
        if self._again:
            self._loop.call_soon(self._continue)
