"""Reaching the first of several checked addresses (happy eyeballs, RFC 8305)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edged.egress.addresses import Address, canonical
from edged.egress.destinations import Place
from edged.egress.policy import Decision
from services.egress.poller import Poller

ATTEMPT_DELAY_S = 0.25  # RFC 8305 §5
_CONNECTING = (errno.EINPROGRESS, errno.EAGAIN)


@dataclass(slots=True)
class Endpoint:
    """A checked address and a port, and what allowed it. ``seen``: its events so far."""

    address: Address
    port: int
    place: Place
    decision: Decision
    seen: int = 0


def interleaved(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """IPv6 and IPv4 by turns, IPv6 first, otherwise in the order given (RFC 8305 §4)."""
    six = deque(e for e in endpoints if e.address.version == 6)
    four = deque(e for e in endpoints if e.address.version == 4)
    mixed: list[Endpoint] = []
    while six or four:
        mixed += [queue.popleft() for queue in (six, four) if queue]
    return mixed


class Dial:
    """Connects to exactly the addresses it is given: no name is ever looked up here.

    ``done(sock, endpoint, error)`` is called once: with a connected socket, which the poller watches
    with no handler yet, or with the errno of the last failure.
    """

    __slots__ = ("_attempts", "_done", "_error", "_left", "_loop", "_poller", "_timer")

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        poller: Poller,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[socket.socket | None, Endpoint | None, int], None],
    ) -> None:
        self._left = deque(endpoints)
        self._poller, self._loop, self._done = poller, loop, done
        self._attempts: dict[int, tuple[socket.socket, Endpoint, str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._error = errno.EHOSTUNREACH

    def start(self) -> None:
        """Begin with the first address; the next starts when it failed, or after a short delay."""
        self._timer = None
        while self._left:
            endpoint = self._left.popleft()
            if self._attempt(endpoint):
                if self._left:
                    self._timer = self._loop.call_later(ATTEMPT_DELAY_S, self.start)
                return
        if not self._attempts:
            self._done(None, None, self._error)

    def cancel(self) -> None:
        """Give up all attempts; ``done`` is not called."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._left.clear()
        for sock, _, _ in self._attempts.values():
            self._drop(sock)
        self._attempts.clear()

    def _attempt(self, endpoint: Endpoint) -> bool:
        """Start one connect; False when it failed at once."""
        family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._error = error.errno or errno.EMFILE
            return False
        text = str(endpoint.address)
        code = sock.connect_ex((text, endpoint.port))
        if code != 0 and code not in _CONNECTING:
            self._error = code
            sock.close()
            return False
        fd = sock.fileno()
        self._attempts[fd] = (sock, endpoint, text)
        self._poller.add(fd, lambda events: self._ready(fd, events))
        return True

    def _ready(self, fd: int, events: int) -> None:
        attempt = self._attempts.get(fd)
        if attempt is None:
            return
        sock, endpoint, text = attempt
        try:
            peer = sock.getpeername()
        except OSError:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:  # a stale event: still on its way
                return
        else:
            if peer[1] == endpoint.port and (peer[0] == text or _same(peer[0], endpoint.address)):
                del self._attempts[fd]
                self.cancel()
                endpoint.seen = events
                self._done(sock, endpoint, 0)
                return
            code = errno.EHOSTUNREACH  # not where we meant to go
        self._error = code
        del self._attempts[fd]
        self._drop(sock)
        if self._timer is not None:
            self._timer.cancel()
        self.start()

    def _drop(self, sock: socket.socket) -> None:
        self._poller.forget(sock.fileno())
        sock.close()


def _same(text: str, address: Address) -> bool:
    return canonical(type(address)(text.partition("%")[0])) == address


def words_of(code: int) -> str:
    """What an errno means, for the client."""
    return os.strerror(code).lower() if code else "no answer in time"
