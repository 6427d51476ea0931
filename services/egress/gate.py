"""The gate: listeners, the connections they took, and everything those share."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from edged import logs
from edged.config import Config
from edged.config.egress import Egress, Source, Way
from edged.egress.addresses import Address, Guard, canonical
from edged.egress.destinations import Place
from edged.egress.interfaces import own_addresses
from edged.egress.names import Names
from edged.egress.outcomes import Outcome
from edged.egress.policy import Asker, Decision, Policy
from edged.egress.wishes import Target
from edged.errors import EdgeError
from edged.http import listen
from edged.identity.client import Verdicts
from edged.identity.words import JobId, Principal
from services.egress import http
from services.egress.accounts import Accounts
from services.egress.exposition import shown
from services.egress.journal import Journal
from services.egress.limits import Meter, Meters
from services.egress.marks import Marks
from services.egress.outcomes import Refusal
from services.egress.passes import Passes
from services.egress.pipes import Pipes
from services.egress.poller import LEVEL, Poller
from services.egress.relays import Relay
from services.egress.session import Session
from services.egress.tunnel import Passage, Tunnel

log = logs.get_logger("services.egress")

TICK_S = 0.1  # tunnels held by a rate go on this often; deadlines are kept to this
SWEEP_TICKS = 10
_ACCEPTS = 64
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_REMEMBERED = 65536


class Gate:
    """Proxy and relays of one process.

    ``inherited`` listeners (by name ``egress``, ``egress-relay-<name>``) are used instead of binding.
    """

    name = "egress"

    def __init__(
        self,
        config: Config,
        identity: Verdicts,
        accounts: Accounts,
        names: Names,
        inherited: Mapping[str, list[socket.socket]] | None = None,
    ) -> None:
        assert config.egress is not None
        self.settings: Egress = config.egress
        self.limits = self.settings.limits
        self.pseudonym = http.pseudonym(config.site.name)
        self.identity, self.accounts, self.names = identity, accounts, names
        self.passes = Passes(identity, names)
        self.passes.on_end = self._job_ended
        self.passes.on_ban = self._banned
        self.relays = [Relay(item, names) for item in self.settings.relays]
        self.listeners: list[socket.socket] = []
        self.policy = Policy(self.settings)
        self.meters = Meters(self.settings.rules)
        self.pipes = Pipes(self.limits.pipes)
        self.sessions: set[Session] = set()
        self.tunnels: set[Tunnel] = set()
        self.journal = Journal()
        self.marks = Marks()
        self.now = time.monotonic()
        self._inherited = dict(inherited or {})
        self._moment = datetime.now().astimezone()
        self._open_by: Counter[str] = Counter()
        self._asking: set[asyncio.Task[None]] = set()
        self._hosts: dict[str, tuple[Address, Source | None]] = {}
        self._decisions: dict[tuple[Asker, Way, Place], Decision] = {}
        self._relay_of: dict[int, Relay] = {}
        self._resting: set[socket.socket] = set()  # listeners that had no descriptor left
        self.poller: Poller
        self.loop: asyncio.AbstractEventLoop
        self._tasks: asyncio.TaskGroup

    # -- life ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Listen; on leaving, every tunnel is closed and counted."""
        self.loop = asyncio.get_running_loop()
        self.poller, self._tasks = Poller(self.loop), tasks
        try:
            self._listen()
            self._learn_own_addresses()
            background = [tasks.create_task(self._tick(), name="egress-sweep")]
            background += [
                tasks.create_task(relay.watch(), name=f"relay-{relay.name}") for relay in self.relays
            ]
            try:
                with shown(self, self.accounts):
                    yield
            finally:
                for task in [*background, *self._asking]:
                    task.cancel()
                await asyncio.gather(*background, *self._asking, return_exceptions=True)
        finally:
            self._shut()
            await self.names.aclose()

    @property
    def addresses(self) -> list[str]:
        """Where it listens: the proxy first, then the relays in the order of the configuration."""
        return [listen.address_of(sock) for sock in self.listeners]

    def not_ready(self) -> str | None:
        """A relay none of whose upstreams answers, or identity's own trouble."""
        dead = [relay.name for relay in self.relays if relay.dead]
        if dead:
            return f"no upstream answers for relay {', '.join(dead)}"
        return self.identity.not_ready()

    async def reload(self, config: Config) -> None:
        """New policy and limits; tunnels it no longer allows are closed. Listeners stay as they are."""
        if config.egress is None:
            return
        self.settings, self.limits = config.egress, config.egress.limits
        self.meters.replace(self.settings.rules)
        self._learn_own_addresses()
        for tunnel in list(self.tunnels):
            passage = tunnel.passage
            if not self.policy.decide(passage.asker, passage.way, passage.place, self.moment()).allowed:
                tunnel.close("withdrawn")

    def _listen(self) -> None:
        self.listeners = listen.listeners(self.settings.listen, self._inherited.get("egress"))
        for relay in self.relays:
            for sock in listen.listeners(
                relay.settings.listen, self._inherited.get(f"egress-relay-{relay.name}")
            ):
                self._relay_of[sock.fileno()] = relay
                self.listeners.append(sock)
        for sock in self.listeners:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit both
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if sock.fileno() not in self._relay_of:  # all our protocols let the client speak first
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, int(self.limits.head_s))
            self.poller.add(sock.fileno(), self._acceptor(sock), LEVEL)

    def _learn_own_addresses(self) -> None:
        own = own_addresses()
        listeners: set[tuple[Address, int]] = set()
        for sock in self.listeners:
            host, port = sock.getsockname()[:2]
            address = canonical(ipaddress.ip_address(host))
            every = own | {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}
            listeners |= {(a, port) for a in (every if address.is_unspecified else {address})}
        guard = Guard(
            deny=self.settings.deny, inside=self.settings.inside, own=own, listeners=frozenset(listeners)
        )
        self.policy = Policy(self.settings, guard)
        self._hosts.clear()
        self._decisions.clear()

    def _shut(self) -> None:
        for session in list(self.sessions):
            session.close()
        for tunnel in list(self.tunnels):
            tunnel.close("stopping")
        for sock in self.listeners:
            sock.close()
        self.listeners.clear()
        self.journal.flush()
        self.pipes.close()
        self.poller.close()

    # -- connections ---------------------------------------------------------------------------

    def _acceptor(self, listener: socket.socket) -> Callable[[int], None]:
        relay = self._relay_of.get(listener.fileno())

        def accept(_events: int) -> None:
            for _ in range(_ACCEPTS):
                try:
                    sock, name = listener.accept()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        self._rest(listener, error)
                    return  # else a client that went away
                self._take(sock, name[0], relay)

        return accept

    def _rest(self, listener: socket.socket, why: OSError) -> None:
        """Out of descriptors or memory: who waits stays in the kernel's queue until the next tick."""
        log.warning("no room for another connection", extra={"reason": why.strerror})
        self.poller.pause(listener.fileno())
        self._resting.add(listener)

    def _go_on(self) -> None:
        while self._resting:
            listener = self._resting.pop()
            if listener.fileno() >= 0:
                self.poller.add(listener.fileno(), self._acceptor(listener), LEVEL)

    def _take(self, sock: socket.socket, host: str, relay: Relay | None) -> None:
        address, source = self._known(host)
        way = Way.PROXY if relay is None else Way.RELAY
        full = len(self.sessions) + len(self.tunnels) >= self.limits.connections
        name = str(address)
        if source is None or full or self._open_by[name] >= self.limits.connections_per_source:
            outcome = Outcome.NO_SOURCE if source is None else Outcome.LIMIT
            self.accounts.of(None, way, "").refused[outcome] += 1
            sock.close()
            return
        sock.setblocking(False)
        self._open_by[name] += 1
        session = Session(self, sock, address, source, self.now + self.limits.head_s)
        self.sessions.add(session)
        if relay is None:
            session.start()
        else:
            session.relay(relay.targets(), relay.prelude(sock))

    def _known(self, host: str) -> tuple[Address, Source | None]:
        """An address as accept(2) wrote it, and its source; remembered, a site has few."""
        found = self._hosts.get(host)
        if found is None:
            if len(self._hosts) >= _REMEMBERED:
                self._hosts.clear()
            address = canonical(ipaddress.ip_address(host.partition("%")[0]))
            found = self._hosts[host] = (address, self.policy.source_of(address))
        return found

    def decide(self, asker: Asker, way: Way, place: Place) -> Decision:
        """The policy's word, remembered while nothing in it can change."""
        key = (asker, way, place)
        found = self._decisions.get(key)
        if found is None:
            found = self.policy.decide(asker, way, place, self.moment())
            if not self.policy.timed:
                if len(self._decisions) >= _REMEMBERED:
                    self._decisions.clear()
                self._decisions[key] = found
        return found

    def left(self, session: Session) -> None:
        """A session closed without a tunnel."""
        self.sessions.discard(session)
        self._leave(str(session.source_address))

    def joined(
        self, session: Session, server: socket.socket, passage: Passage, meter: Meter | None
    ) -> Tunnel:
        """A session becomes a tunnel: written down before its first byte."""
        self.sessions.discard(session)
        decision, asker = passage.decision, passage.asker
        account = self.accounts.of(asker, passage.way, decision.destination)
        account.connections += 1
        account.open += 1
        if decision.outcome is Outcome.OBSERVED:
            account.observed += 1
        if meter is not None:
            meter.open += 1
        tunnel = Tunnel(
            session.sock,
            server,
            poller=self.poller,
            pipes=self.pipes,
            meter=meter,
            account=account,
            passage=passage,
            ended=self._ended,
            now=self.now,
            life_s=self.limits.life_s,
        )
        self.tunnels.add(tunnel)
        self.journal.decided(asker, passage.to, decision.outcome, passage.way, decision.reason)
        return tunnel

    def _ended(self, tunnel: Tunnel, why: str) -> None:
        self.tunnels.discard(tunnel)
        tunnel.account.open -= 1
        passage = tunnel.passage
        self._leave(passage.asker.address)
        ended = self.journal.closed(passage.asker, passage.to, why)
        ended.tunnels += 1
        ended.bytes_out += tunnel.up.moved
        ended.bytes_in += tunnel.down.moved
        ended.longest_s = max(ended.longest_s, self.now - tunnel.started_at)

    def refused(self, asker: Asker, targets: Sequence[Target], refusal: Refusal, *, way: Way) -> None:
        """Count and audit a refusal."""
        self.accounts.of(asker, way, refusal.destination).refused[refusal.outcome] += 1
        shown = ", ".join(str(target) for target in targets)
        self.journal.decided(asker, shown, refusal.outcome, way, refusal.reason)

    def _leave(self, address: str) -> None:
        left = self._open_by[address] - 1
        if left > 0:
            self._open_by[address] = left
        else:
            del self._open_by[address]

    # -- time and news -------------------------------------------------------------------------

    def moment(self) -> datetime:
        """Local time for rules with a window, not older than a second."""
        return self._moment

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Ask somebody on behalf of one session."""
        task = self._tasks.create_task(_guarded(work))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            self.now = time.monotonic()
            self._go_on()
            self.meters.wake()
            self.journal.flush()
            ticks += 1
            if ticks % SWEEP_TICKS == 0:
                self._moment = datetime.now().astimezone()
                self._sweep()

    def _sweep(self) -> None:
        for session in [s for s in self.sessions if s.deadline < self.now]:
            session.expire()
        for tunnel in list(self.tunnels):
            tunnel.sweep(self.now, self.limits.idle_s)
            if self.policy.timed and not self._still_allowed(tunnel):
                tunnel.close("time window over")
        self.meters.sweep()

    def _still_allowed(self, tunnel: Tunnel) -> bool:
        passage = tunnel.passage
        return self.policy.decide(passage.asker, passage.way, passage.place, self.moment()).allowed

    def _job_ended(self, job: JobId) -> None:
        self._cut(lambda passage: passage.asker.job == job, "job ended")

    def _banned(self, covers: Callable[[Principal], bool]) -> None:
        self._cut(lambda passage: passage.principal is not None and covers(passage.principal), "banned")

    def _cut(self, these: Callable[[Passage], bool], why: str) -> None:
        for tunnel in [t for t in self.tunnels if these(t.passage)]:
            tunnel.close(why)
        for session in [s for s in self.sessions if s.passage_would(these)]:
            session.close()


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    """One session's trouble stays its own: the task group must not end for it."""
    try:
        await work
    except EdgeError as error:
        log.warning("session failed", extra={"reason": str(error)})
    except Exception:
        log.exception("session failed")
