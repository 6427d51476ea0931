"""Where the forwarding proxy may go: the policy of [egress], asked for each request, each name, each connection.

The asker is edged's part of the proxy (``edged_forward.cc`` and ``edged_way.cc``). A request is judged for the node
that makes it; a connection, which may be what a far server's redirect led to, for whoever may use the proxy at all.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from datetime import datetime

from edged import metrics
from edged.config import Config
from edged.config.egress import Protocol, Source, Way
from edged.egress.addresses import Address, Guard
from edged.egress.destinations import Place
from edged.egress.interfaces import own_addresses
from edged.egress.names import Names
from edged.egress.outcomes import Outcome
from edged.egress.policy import Asker, Decision, Policy
from edged.egress.wishes import Target, target_of, target_of_authority
from edged.errors import BadRequest, EdgeError
from edged.logs import audit
from services.storage.xrootd import judging

PORT = 1094  # of root:// without one
CLIENT_S = 300.0  # how long the server's client library may use an address it was told, at least
REMEMBERED = 4096
_REMOTE = re.compile(r"/(?:root|roots|xroot|xroots):/([^/]+)(?:/.*)?", re.DOTALL)

ASKED = metrics.counter("xrootd_proxy_requests", "What the nodes' proxy was asked for.", ("outcome",))
CONNECTS = metrics.counter("xrootd_proxy_connects", "Where the nodes' proxy wished to connect.", ("outcome",))


class Passage:
    """Judges for the proxy of one configuration."""

    def __init__(self, config: Config, own: frozenset[Address] | None = None) -> None:
        assert config.egress is not None
        assert config.storage is not None
        assert config.storage.xrootd is not None
        assert config.storage.xrootd.proxy is not None
        egress = config.egress
        guard = Guard(deny=egress.deny, inside=egress.inside, own=own if own is not None else own_addresses())
        self._policy = Policy(egress, guard)
        self._source = config.storage.xrootd.proxy.source
        self._names = Names(
            egress.resolvers, timeout_s=egress.limits.resolve_s, lookups=egress.limits.lookups
        )
        self._told: OrderedDict[Address, dict[str, float]] = OrderedDict()  # address → its names, until when

    async def aclose(self) -> None:
        """End the look-ups under way."""
        await self._names.aclose()

    async def answer(self, question: str) -> bytes:
        """The wire form: ``ok`` with what was asked, or ``no`` with the reason."""
        word, _, rest = question.partition(" ")
        try:
            if word == "open":
                return _said(await self.opens(*_two(rest)))
            if word == "connect":
                return _said(self.connects(*_two(rest)))
            if word == "name":
                found = await self.addresses(rest)
                return (
                    " ".join(["ok", *map(str, found)]).encode() if found else judging.no("no address of it")
                )
            return judging.no("not a question")
        except EdgeError as error:
            return judging.no(error.message)

    # --- a node's request

    async def opens(self, client: str, path: str) -> Decision:
        """Whether the node at ``client`` may ask for ``path``. Raises BadRequest, and what a look-up raises."""
        decision, source, to = await self._request(client, path)
        ASKED.labels(decision.outcome.value).inc()
        audit(
            "xrootd proxy", who=None, allowed=decision.allowed, reason=decision.reason,
            client=client[:64], source=source, to=to, rule=decision.rule,
        )  # fmt: skip
        return decision

    async def _request(self, client: str, path: str) -> tuple[Decision, str, str]:
        try:
            address = ipaddress.ip_address(client.strip("[]"))
            target = target_in(path)
        except (ValueError, BadRequest):
            return Decision(Outcome.MALFORMED, "not a remote file of a known kind"), "", ""
        source = self._policy.source_of(address)
        if source is None or not self._uses(source):
            return Decision(Outcome.NO_SOURCE, "this proxy is not for that address"), "", str(target)
        asker = self._policy.by_address(source, address)
        try:
            return await self._judged(asker, target), source.name, str(target)
        except EdgeError as error:
            return Decision(Outcome.NAME, error.message), source.name, str(target)

    async def _judged(self, asker: Asker, target: Target) -> Decision:
        moment = datetime.now().astimezone()
        if target.address is not None:
            place = Place("", target.address, target.port)
            return self._policy.decide(asker, Way.PROXY, place, moment)
        first = self._policy.may_resolve(asker, Way.PROXY, target.host, target.port, moment)
        if not first.allowed:
            return first
        decision = Decision(Outcome.NAME, "no address of it")
        for address in await self._resolved(target.host):
            place = Place(target.host, address, target.port)
            decision = self._policy.decide(asker, Way.PROXY, place, moment)
            if decision.allowed:
                break
        return decision

    # --- what the server tries then

    async def addresses(self, name: str) -> list[Address]:
        """What the server may know of ``name``: nothing that every rule refuses. Raises EdgeError."""
        host = target_of(name, PORT).host
        if not host or not any(self._may_hold(host)):
            raise BadRequest("no rule names that host")
        found = await self._resolved(host)
        return [address for address in found if self._policy.guard.refuses(address, 0) is None]

    def connects(self, address: str, port: str) -> Decision:
        """Whether the server may connect there, for any node that may use it."""
        decision = self._connection(address, port)
        CONNECTS.labels(decision.outcome.value).inc()
        if not decision.allowed:
            audit(
                "xrootd proxy connects",
                who=None,
                allowed=False,
                reason=decision.reason,
                to=f"{address} {port}",
            )
        return decision

    def _connection(self, address: str, port: str) -> Decision:
        try:
            target = target_of(address, int(port))
        except (ValueError, BadRequest):
            return Decision(Outcome.MALFORMED, "not an address and a port")
        if target.address is None:
            return Decision(Outcome.MALFORMED, "not an address")
        moment = datetime.now().astimezone()
        decision = Decision(Outcome.NO_SOURCE, "this proxy is for nobody")
        for asker in self._askers():
            for host in ("", *self._names_of(target.address)):
                place = Place(host, target.address, target.port)
                decision = self._policy.decide(asker, Way.PROXY, place, moment)
                if decision.allowed:
                    return decision
        return decision

    # --- details

    def _uses(self, source: Source) -> bool:
        """Whether nodes of ``source`` may use the proxy: who must show a job's token cannot."""
        return self._source in (None, source.name) and not source.require_token

    def _askers(self) -> Iterator[Asker]:
        for source in self._policy.sources:
            if self._uses(source):
                yield self._policy.by_address(source, source.networks[0].network_address)

    def _may_hold(self, host: str) -> Iterator[bool]:
        for rule in self._policy.rules:
            if any(rule.speaks_of(asker, Way.PROXY) for asker in self._askers()):
                for destination in rule.destinations:
                    ports = [low for low, _ in destination.settings.ports]
                    yield any(destination.may_hold(host, port, Protocol.TCP) for port in ports)

    async def _resolved(self, host: str) -> tuple[Address, ...]:
        """Its addresses, remembered under that name. Raises EdgeError."""
        found = await self._names.resolve(host)
        until = time.monotonic() + max(CLIENT_S, found.ttl_s)
        for address in found.addresses:
            self._told.setdefault(address, {})[host] = until
            self._told.move_to_end(address)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        return found.addresses

    def _names_of(self, address: Address) -> Iterable[str]:
        now = time.monotonic()
        return [host for host, until in self._told.get(address, {}).items() if until > now]


def target_in(path: str) -> Target:
    """The place in ``/root:/host:port/path``, as the server normalises it. Raises BadRequest.

    A place that is itself a forwarding proxy is judged as a place. Logins in a URL are refused: they are
    somebody's, the proxy is everybody's.
    """
    match = _REMOTE.fullmatch(path)
    if match is None:
        raise BadRequest("not a remote file")
    return target_of_authority(match[1], PORT)


def _two(words: str) -> tuple[str, str]:
    first, _, second = words.partition(" ")
    return first, second


def _said(decision: Decision) -> bytes:
    return b"ok" if decision.allowed else judging.no(decision.reason)
