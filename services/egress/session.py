"""One client from accept to tunnel: a head, an answer to whether it may, a connection out.

Driven by readiness, without a coroutine unless identity or the DNS has to be asked: what a set-up
costs is held by tests/bench/egress_proxy.py.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from edged.config.egress import Source, Way
from edged.egress.addresses import Address
from edged.egress.destinations import Place
from edged.egress.outcomes import Outcome
from edged.egress.policy import Asker, Decision
from edged.egress.wishes import Credentials, Target
from edged.errors import BadRequest, Busy, EdgeError, Unauthenticated, Unavailable, Upstream, UpstreamTimeout
from edged.identity.words import Principal
from services.egress import http, socks
from services.egress.dial import Dial, Endpoint, interleaved, words_of
from services.egress.forward import AnswerStream
from services.egress.heads import Head, end_of, parse_request
from services.egress.marks import OWN
from services.egress.outcomes import WIRE, Refusal
from services.egress.passes import Pass
from services.egress.poller import ERR, HUP, IN
from services.egress.tunnel import Passage

if TYPE_CHECKING:
    from services.egress.gate import Gate

_ATTEMPTS = 16  # addresses of one name: whoever owns it must not make one request a scan of thousands
_DRAIN_S = 2.0  # a refusal's bytes get this long to be read; closing at once could destroy them


class Session:
    """A client that has no tunnel yet. Ends as a tunnel, a refusal, or nothing."""

    __slots__ = (
        "_address", "_asker", "_credentials", "_dial", "_early", "_forward", "_inbox", "_pass", "_say_no",
        "_seen", "_source", "_state", "_targets", "_way", "_yes", "closed", "deadline", "gate", "prelude",
        "sock",
    )  # fmt: skip

    def __init__(
        self, gate: Gate, sock: socket.socket, address: Address, source: Source, deadline: float
    ) -> None:
        self.gate, self.sock, self.deadline = gate, sock, deadline
        self.closed = False
        self.prelude = b""  # sent to the server before anything of the client's
        self._address, self._source = address, source
        self._inbox = bytearray()
        self._state: Callable[[], bool] | None = self._first_byte
        self._say_no: Callable[[Refusal], bytes] = _http_no
        self._yes: Callable[[socket.socket], bytes] = _nothing
        self._way = Way.PROXY
        self._targets: tuple[Target, ...] = ()
        self._credentials: Credentials | None = None
        self._pass: Pass | None = None
        self._asker: Asker | None = None
        self._early = b""
        self._forward: http.Forward | None = None
        self._dial: Dial | None = None
        self._seen = 0  # events of the client's that nobody acted on yet

    # -- reading what the client wants ---------------------------------------------------------

    def start(self) -> None:
        """Watch the socket; what it sent already is read at once."""
        self.gate.poller.add(self.sock.fileno(), self._ready)
        self._ready(0)

    def relay(self, targets: tuple[Target, ...], prelude: bytes) -> None:
        """Skip the head: the listener says where to."""
        self.gate.poller.add(self.sock.fileno(), self._ready)
        self._way, self._targets, self.prelude = Way.RELAY, targets, prelude
        self._say_no = _say_nothing
        self._state = None
        self._admit()

    def _ready(self, events: int) -> None:
        self._seen |= events
        if self._state is None:  # decided: the client's bytes wait in the kernel for the tunnel
            if events & (HUP | ERR):
                self.close()
            return
        limit = self.gate.limits.head_bytes
        try:
            while self._state is not None:
                self._seen &= ~IN
                data = self.sock.recv(limit)
                if not data:
                    self.close()
                    return
                if len(data) == limit:
                    self._seen |= IN
                self._inbox += data
                while self._state is not None and self._state():
                    pass
        except BlockingIOError:
            return
        except OSError:
            self.close()
        except BadRequest as error:
            self._refuse(Refusal(Outcome.MALFORMED, error.message))

    def _first_byte(self) -> bool:
        self._state = self._greeting if self._inbox[0] == socks.VERSION else self._head
        return True

    def _head(self) -> bool:
        end = end_of(self._inbox, self.gate.limits.head_bytes)
        if end < 0:
            return False
        head = parse_request(bytes(self._inbox[:end]))
        self._early = bytes(self._inbox[end:])
        self._state = None
        if head.target.startswith(OWN):
            self._told(head)
            return False
        self._credentials = http.credentials_of(head)
        if head.method == "CONNECT":
            self._targets = (http.connect_target(head),)
            self._yes = _http_yes
        else:
            self._forward = http.forward_of(head, self.gate.pseudonym)
            self._targets = (self._forward.target,)
            self.prelude = self._forward.head
        self._admit()
        return False

    def _told(self, head: Head) -> None:
        """A node's prolog says which job a mark stands for."""
        port = self.sock.getpeername()[1]
        why = self.gate.marks.tell(head.method, head.target, self._address, port)
        if why is None:
            self._farewell(http.NO_CONTENT)
        else:
            self._refuse(Refusal(Outcome.MALFORMED, why))

    def _greeting(self) -> bool:
        self._say_no = _say_nothing
        parsed = socks.parse_greeting(self._inbox)
        if parsed is None:
            return False
        methods, used = parsed
        del self._inbox[:used]
        choice = socks.choose(methods)
        self.sock.send(choice)
        if choice == socks.NO_METHOD:
            self._refuse(Refusal(Outcome.TOKEN, "no usable SOCKS method"))
            return False
        self._state = self._login if choice == socks.USE_PASSWORD else self._socks_request
        return bool(self._inbox)

    def _login(self) -> bool:
        """Credentials are proven with the request; a wrong token is told there, as 'not allowed'."""
        parsed = socks.parse_login(self._inbox)
        if parsed is None:
            return False
        self._credentials, used = parsed
        del self._inbox[:used]
        self.sock.send(socks.LOGIN_ACCEPTED)
        self._state = self._socks_request
        return bool(self._inbox)

    def _socks_request(self) -> bool:
        self._say_no = _socks_no
        parsed = socks.parse_request(self._inbox)
        if parsed is None:
            return False
        request, used = parsed
        self._early = bytes(self._inbox[used:])
        self._state = None
        if request.target is None:
            self._say_no = lambda _refusal: socks.reply(request.reply)
            self._refuse(Refusal(Outcome.MALFORMED, "SOCKS command or address type is not served"))
            return False
        self._targets = (request.target,)
        self._yes = _socks_yes
        self._admit()
        return False

    # -- deciding ------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Go on at once when everything is known, else ask in a task."""
        gate = self.gate
        self.deadline = gate.now + gate.limits.resolve_s + gate.limits.connect_s
        if self._credentials is not None:
            self._pass = gate.passes.known(self._credentials)
            if self._pass is None:
                gate.spawn(self._ask())
                return
        self._identified()

    def _identified(self) -> None:
        gate = self.gate
        if self._pass is not None:
            if not self._pass.good_from(self._address):
                self._refuse(Refusal(Outcome.TOKEN, "this job does not run at your address"))
                return
            self._asker = gate.policy.by_job(self._source, self._address, self._pass.facts)
        else:
            self._asker = gate.policy.by_address(self._source, self._address)
            if self._source.require_token and self._way is Way.PROXY:
                self._refuse(Refusal(Outcome.TOKEN, "a job token is needed"))
                return
        places = self._known_places()
        if places is None:
            gate.spawn(self._look_up())
        else:
            self._decide(places)

    def _known_places(self) -> list[Place] | None:
        places = []
        for target in self._targets:
            if target.address is not None:
                places.append(Place("", target.address, target.port))
                continue
            found = self.gate.names.known(target.host)
            if found is None:
                return None
            places += [Place(target.host, address, target.port) for address in found.addresses]
        return places

    async def _ask(self) -> None:
        assert self._credentials is not None
        try:
            self._pass = await self.gate.passes.ask(self._credentials)
        except Unauthenticated as error:
            self._refuse(Refusal(Outcome.TOKEN, error.message))
        except EdgeError as error:
            self._refuse(Refusal(Outcome.BUSY, error.message))
        else:
            if not self.closed:
                self._identified()

    async def _look_up(self) -> None:
        gate, places = self.gate, []
        assert self._asker is not None
        failure = Refusal(Outcome.NAME, "the name has no address")
        for target in self._targets:
            if target.address is not None:
                places.append(Place("", target.address, target.port))
                continue
            may = gate.policy.may_resolve(self._asker, self._way, target.host, target.port, gate.moment())
            if not may.allowed:
                failure = Refusal(may.outcome, may.reason, may.rule, may.destination)
                continue
            try:
                found = await gate.names.resolve(target.host)
                places += [Place(target.host, address, target.port) for address in found.addresses]
            except EdgeError as error:
                failure = Refusal(_outcome_of(error), error.message)
        if self.closed:
            return
        if places:
            self._decide(places)
        else:
            self._refuse(failure)

    def _decide(self, places: list[Place]) -> None:
        gate, asker = self.gate, self._asker
        assert asker is not None
        allowed: list[Endpoint] = []
        refused: Decision | None = None
        for place in places:
            decision = gate.decide(asker, self._way, place)
            if decision.allowed:
                assert place.address is not None
                allowed.append(Endpoint(place.address, place.port, place, decision))
            else:
                refused = refused or decision
        if not allowed:
            if refused is None:
                self._refuse(Refusal(Outcome.NAME, "the name has no address"))
            else:
                self._refuse(Refusal(refused.outcome, refused.reason, refused.rule, refused.destination))
            return
        if len(allowed) > 1 and self._way is Way.PROXY:
            allowed = interleaved(allowed)[:_ATTEMPTS]
        self._connect(allowed)

    # -- connecting ----------------------------------------------------------------------------

    def _connect(self, endpoints: list[Endpoint]) -> None:
        gate = self.gate
        self.deadline = gate.now + gate.limits.connect_s
        self._dial = Dial(endpoints, gate.poller, gate.loop, self._dialled)
        self._dial.start()

    def _dialled(self, server: socket.socket | None, endpoint: Endpoint | None, code: int) -> None:
        self._dial = None
        if server is None or endpoint is None:
            outcome = Outcome.TIMEOUT if code == errno.ETIMEDOUT else Outcome.UNREACHABLE
            self._refuse(Refusal(outcome, f"cannot reach it: {words_of(code)}"))
            return
        self._join(server, endpoint)

    def _join(self, server: socket.socket, endpoint: Endpoint) -> None:
        gate, asker, place = self.gate, self._asker, endpoint.place
        assert asker is not None
        decision = gate.decide(asker, self._way, place)  # again: the policy may have changed while we dialled
        if not decision.allowed:
            self._part(server)
            self._refuse(Refusal(decision.outcome, decision.reason, decision.rule, decision.destination))
            return
        meter = gate.meters.of(decision.rule, asker)
        if meter is not None and (why := meter.refuses()) is not None:
            self._part(server)
            self._refuse(Refusal(Outcome.LIMIT, why, decision.rule, decision.destination))
            return
        passage = Passage(asker, self._way, place, decision, self._principal(), _shown(place))
        tunnel = gate.joined(self, server, passage, meter)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        early = self._early
        if self._forward is not None:
            early = early[: self._forward.body]
            tunnel.up.limit = len(self.prelude) + self._forward.body
            tunnel.down = AnswerStream(server, self.sock, gate.pipes, meter, gate.pseudonym)
        tunnel.down.preset(self._yes(server))
        tunnel.up.preset(self.prelude + early)
        self.closed = True
        tunnel.start(self._seen, endpoint.seen)

    def _part(self, server: socket.socket) -> None:
        """Drop a server we connected to and may not use."""
        self.gate.poller.forget(server.fileno())
        server.close()

    def _principal(self) -> Principal | None:
        return self._pass.facts.principal if self._pass is not None else None

    # -- ending --------------------------------------------------------------------------------

    def _refuse(self, refusal: Refusal) -> None:
        if self.closed:
            return
        self._state = None
        asker = self._asker or self.gate.policy.by_address(self._source, self._address)
        self.gate.refused(asker, self._targets, refusal, way=self._way)
        self._farewell(self._say_no(refusal))

    def _farewell(self, answer: bytes) -> None:
        """Send the last word and wait a little until it was read."""
        try:
            self.sock.send(answer)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.deadline = self.gate.now + _DRAIN_S
        self.gate.poller.handlers[self.sock.fileno()] = self._drain
        self._say_no = _say_nothing
        self._drain(0)

    def _drain(self, _events: int) -> None:
        """Read away what still comes, up to a limit: unread bytes would turn our answer into a reset."""
        try:
            for _ in range(16):
                if not self.sock.recv(65536):
                    break
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def expire(self) -> None:
        """The deadline passed: a slow head, a destination that does not answer, or a drain that is over."""
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
            self._refuse(Refusal(Outcome.TIMEOUT, "the destination did not answer in time"))
        else:
            self.close()

    def close(self) -> None:
        """Drop the client without a word."""
        if self.closed:
            return
        self.closed = True
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self.gate.poller.forget(self.sock.fileno())
        self.sock.close()
        self.gate.left(self)

    def passage_would(self, these: Callable[[Passage], bool]) -> bool:
        """Whether the tunnel this becomes would be one of ``these``; only jobs' sessions can be."""
        if self._asker is None or self._pass is None:
            return False
        place = Place("", None, 0)
        return these(Passage(self._asker, self._way, place, Decision(Outcome.ALLOWED, ""), self._principal()))

    @property
    def source_address(self) -> Address:
        """Where the client is."""
        return self._address


def _outcome_of(error: EdgeError) -> Outcome:
    if isinstance(error, UpstreamTimeout):
        return Outcome.TIMEOUT
    return (
        Outcome.BUSY
        if isinstance(error, Busy | Unavailable) and not isinstance(error, Upstream)
        else Outcome.NAME
    )


def _shown(place: Place) -> str:
    return str(Target(place.host, None if place.host else place.address, place.port))


def _nothing(_server: socket.socket) -> bytes:
    return b""


def _http_yes(_server: socket.socket) -> bytes:
    return http.ESTABLISHED


def _socks_yes(server: socket.socket) -> bytes:
    return socks.reply(socks.Reply.SUCCEEDED, server.getsockname()[:2])


def _http_no(refusal: Refusal) -> bytes:
    wire = WIRE[refusal.outcome]
    return http.refusal(wire.status, refusal.reason, wire.error)


def _socks_no(refusal: Refusal) -> bytes:
    return socks.reply(WIRE[refusal.outcome].socks)


def _say_nothing(_refusal: Refusal) -> bytes:
    return b""
