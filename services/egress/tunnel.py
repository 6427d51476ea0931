"""A client and a server joined: two streams, one lifetime, counted once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from edged.config.egress import Way
from edged.egress.destinations import Place
from edged.egress.policy import Asker, Decision
from edged.identity.words import Principal
from services.egress.accounts import Account
from services.egress.limits import Meter
from services.egress.pipes import Pipes
from services.egress.poller import ERR, GONE, HUP, IN, OUT, Poller
from services.egress.stream import Stream

_LINGER_0 = b"\x01\0\0\0\0\0\0\0"  # struct linger {on, 0 s}: close sends a reset


@dataclass(frozen=True, slots=True)
class Passage:
    """What was allowed: to whom, where to, by which rule. ``principal`` where a job token proved one.

    ``to`` is the place as it is logged.
    """

    asker: Asker
    way: Way
    place: Place
    decision: Decision
    principal: Principal | None = None
    to: str = ""


class Tunnel:
    """Two sockets joined. ``ended(tunnel, why)`` is called exactly once, when both are closed."""

    __slots__ = (
        "_told_down", "_told_up", "_waits", "account", "client", "down", "ended", "expires_at",
        "meter", "passage", "poller", "quiet_since", "seen", "server", "started_at", "up",
    )  # fmt: skip

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        *,
        poller: Poller,
        pipes: Pipes,
        meter: Meter | None,
        account: Account,
        passage: Passage,
        ended: Callable[[Tunnel, str], None],
        now: float,
        life_s: float,
    ) -> None:
        self.client, self.server, self.poller = client, server, poller
        self.meter, self.account, self.ended = meter, account, ended
        self.up = Stream(client, server, pipes, meter)
        self.down = Stream(server, client, pipes, meter)
        self.started_at = self.quiet_since = now
        self.expires_at = now + life_s
        self.seen = self._told_up = self._told_down = 0
        self._waits = False
        self.passage = passage

    def start(self, client_seen: int, server_seen: int) -> None:
        """Take over both descriptors, which the poller watches already, and move what is there.

        The masks are events that came before and were not acted on. Without one there is nothing to
        read: the next byte will be an event.
        """
        handlers = self.poller.handlers
        handlers[self.client.fileno()] = self._client_ready
        handlers[self.server.fileno()] = self._server_ready
        try:
            more = self._begin(self.up, client_seen)
            more = self._begin(self.down, server_seen) or more
        except OSError:
            self.close("reset")
            return
        self._settle(more)

    def _begin(self, stream: Stream, seen: int) -> bool:
        stream.last_edge = bool(seen & GONE)
        return stream.pump() if seen & (IN | GONE) else stream.flush()

    def _client_ready(self, events: int) -> None:
        self._ready(events, self.up, self.down)

    def _server_ready(self, events: int) -> None:
        self._ready(events, self.down, self.up)

    def _ready(self, events: int, outof: Stream, into: Stream) -> None:
        """Something happened at the socket that ``outof`` reads and ``into`` writes."""
        if events & GONE:
            outof.last_edge = True
            if events & (HUP | ERR) and outof.finished:
                self.close("reset")
                return
        try:
            more = bool(events & (IN | GONE)) and outof.pump()
            if events & OUT and into.blocked:
                more = into.pump() or more
        except OSError:
            self.close("reset")
            return
        self._settle(more)

    def _turn(self) -> None:
        self._waits = False
        if self.client.fileno() < 0:
            return
        try:
            more = self.up.pump()
            more = self.down.pump() or more
        except OSError:
            self.close("reset")
            return
        self._settle(more)

    def _settle(self, more: bool) -> None:
        if self.down.finished and self.up.finished:
            self.close("finished")
        elif more and not self._waits:
            self._waits = True
            self.poller.again(self._turn)
        elif self.meter is not None and (self.up.starved or self.down.starved) and not self._waits:
            self._waits = True
            self.meter.waiting.append(self._turn)

    def sweep(self, now: float, idle_s: float) -> None:
        """Once a second: tell the accounts, give back what rests, end what is over."""
        total = self.up.moved + self.down.moved
        if total != self.seen:
            self.seen, self.quiet_since = total, now
            self.report()
        else:
            self.up.rest()
            self.down.rest()
        if now - self.quiet_since > idle_s:
            self.close("idle")
        elif now > self.expires_at:
            self.close("lifetime over")
        elif self.meter is not None and self.meter.exhausted:
            self.close("quota used up")

    def report(self) -> None:
        """Add to the account what moved since the last report."""
        up, down = self.up.moved, self.down.moved
        self.account.moved(up - self._told_up, down - self._told_down)
        self._told_up, self._told_down = up, down

    def close(self, why: str) -> None:
        """Close both sockets now. Other ends than ``finished`` are sent as a reset, never as a clean end."""
        if self.client.fileno() < 0:
            return
        for sock in (self.client, self.server):
            self.poller.forget(sock.fileno())
            if why != "finished":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            sock.close()
        self.up.release()
        self.down.release()
        self.report()
        if self.meter is not None:
            self.meter.open -= 1
        self.ended(self, why)
