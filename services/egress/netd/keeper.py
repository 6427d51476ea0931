"""Keeping the kernel's table as declared: apply, withdraw, answers, counters."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from edged import config as configuration
from edged.config.egress import Egress, Nat, Protocol, RuleAction, Way
from edged.egress.addresses import Address, Guard, canonical
from edged.egress.destinations import Destination, Place
from edged.egress.interfaces import own_addresses
from edged.egress.policy import Policy
from edged.errors import BadRequest, ConfigError, Upstream
from edged.logs import get_logger
from services.egress.netd import messages, ruleset
from services.egress.netd.adopt import table_of
from services.egress.netd.conntrack import Conntrack, Flow
from services.egress.netd.nft import Nft
from services.egress.netd.table import TABLE, Table, changes
from services.egress.netd.trust import require_root_owned

log = get_logger("services.egress.netd")

_PROTOCOLS = {6: Protocol.TCP, 17: Protocol.UDP}
_LONGEST_S = 86400
_MOST_ADDRESSES = 64  # of one answer
_MOST_OF_A_HOST = 1024  # at once: more is no name of a service
_MOST_REMEMBERED = 65536  # addresses that hosts had; those they have now are kept even so


class Keeper:
    """Owns ``table inet edged``. Every method either does all it says or raises and leaves all as it was."""

    def __init__(self, config_file: Path, nft: Nft, conntrack: Conntrack) -> None:
        self._file, self._nft, self._conntrack = config_file, nft, conntrack
        self._settings, self._nat, self.policy = self._read()
        self._off = False
        self._answers: dict[Address, set[str]] = {}  # every address a host ever had: for flows that stand
        self._live: dict[tuple[str, Address], float] = {}  # (host, address) → end, monotonic
        self._table: Table | None = self._running()
        self._remember_elements()

    # -- the whole table -----------------------------------------------------------------------

    def plan(self) -> list[str]:
        """Commands that ``apply`` would run, against what the kernel really holds. Raises ConfigError."""
        _, nat, policy = self._read()
        return changes(self._running(), ruleset.table(policy, nat, _now()))

    def apply(self) -> list[str]:
        """Read the configuration and make it so; returns the commands. Raises ConfigError, Upstream."""
        settings, nat, policy = self._read()
        wanted = ruleset.table(policy, nat, _now())
        try:
            done = self._become(policy, nat, wanted)
        except Upstream:  # somebody else's hand was in our table: look, and do it from there
            self._table = self._running()
            done = self._become(policy, nat, wanted)
        self._settings, self._off = settings, False
        return done

    def tick(self) -> None:
        """Open and close time windows."""
        if self.policy.timed and not self._off:
            self._become(self.policy, self._nat, ruleset.table(self.policy, self._nat, _now()))

    def off(self, *, remove: bool) -> list[str]:
        """Refuse all, or take the table away. Flows are cut in both cases."""
        self._off = True
        if remove:
            done = [f"delete table {TABLE}"] if self._running() is not None else []
            self._nft.run(done)
            self._table = None
        else:
            wanted = ruleset.closed(self.policy, self._nat, _now())
            done = changes(self._running(), wanted)
            self._nft.run(done)
            self._table = wanted
        self._cut(self._is_inside)
        return done

    def show(self) -> str:
        """nft's own words."""
        return self._nft.text(f"list table {TABLE}") if self._running() is not None else "no table\n"

    def _become(self, policy: Policy, nat: Nat, wanted: Table) -> list[str]:
        commands = changes(self._table, wanted)
        before = self.policy
        if commands:
            self._nft.run([*commands, *self._surviving_answers(policy, wanted)])
        self._table, self.policy, self._nat = wanted, policy, nat
        if commands:
            if not _only_opens(commands, policy):
                self._cut(lambda flow: self._is_inside(flow, before) and not self._allows(flow))
            log.info("table changed", extra={"commands": len(commands)})
        return commands

    def _read(self) -> tuple[Egress, Nat, Policy]:
        require_root_owned(self._file)
        settings = configuration.load(self._file).egress
        if settings is None or settings.nat is None:
            raise ConfigError(["egress.nat: missing, netd has nothing to do"])
        guard = Guard(deny=settings.deny, inside=settings.inside, own=own_addresses())
        return settings, settings.nat, Policy(settings, guard)

    def _running(self) -> Table | None:
        tables = self._nft.listing("list tables inet")
        if not any(item.get("table", {}).get("name") == "edged" for item in tables):
            return None
        return table_of(self._nft.listing(f"list table {TABLE}"))

    # -- DNS answers and withdrawals -----------------------------------------------------------

    def answers(self, message: messages.Answers) -> None:
        """Put a named host's addresses in, for its TTL and some grace. Raises BadRequest."""
        named = [d for d in self.policy.destinations if message.host in ruleset.hosts(d)]
        if not named:
            raise BadRequest("no destination names that host")
        addresses = _addresses(message.addresses)
        refused = [a for a in addresses if self.policy.guard.refuses(a, 0) is not None]
        if refused:
            log.warning(
                "answer refused", extra={"host": message.host, "addresses": [str(a) for a in refused]}
            )
        good = [address for address in addresses if address not in refused]
        self._bound(message.host, good)
        life = min(max(message.ttl_s, int(self._nat.dns_floor_s)) + int(self._nat.dns_grace_s), _LONGEST_S)
        if self._table is not None and good:
            self._nft.run([line for d in named for address in good for line in _renew(d, address, life)])
        for address in good:
            self._answers.setdefault(address, set()).add(message.host)
            self._live[message.host, address] = time.monotonic() + life

    def _bound(self, host: str, new: Iterable[Address]) -> None:
        """Forget what is over. Raises BadRequest when a host would have too many addresses."""
        now = time.monotonic()
        self._live = {key: end for key, end in self._live.items() if end > now}
        own = {address for known, address in self._live if known == host}
        if len(own.union(new)) > _MOST_OF_A_HOST:
            raise BadRequest(f"more than {_MOST_OF_A_HOST} addresses of one host")
        if len(self._answers) > _MOST_REMEMBERED:
            live = {address for _, address in self._live}
            self._answers = {address: hosts for address, hosts in self._answers.items() if address in live}

    def withdraw(self, message: messages.Withdraw) -> None:
        """Nothing to or from an address for a while; its flows end. Raises BadRequest."""
        (address,) = _addresses((message.address,))
        life = min(max(message.for_s, 1), _LONGEST_S)
        name = f"gone{address.version}"
        if self._table is not None:
            self._nft.run(_with_life(name, address, life))
        self._cut(lambda flow: address in (flow.source, flow.destination))

    def _surviving_answers(self, policy: Policy, wanted: Table) -> list[str]:
        """DNS elements for sets that are new in ``wanted``, and the removal of hosts no longer named."""
        now = time.monotonic()
        self._live = {key: end for key, end in self._live.items() if end > now}
        lines: list[str] = []
        for destination in policy.destinations:
            named = set(ruleset.hosts(destination))
            for (host, address), end in self._live.items():
                name = f"dns{address.version}_{ruleset.word(destination.name)}"
                if name in wanted.sets and host in named:
                    lines += _with_life(name, address, max(int(end - now), 1))
        for old in self.policy.destinations:
            lines += self._dropped(old, policy, wanted)
        return lines

    def _dropped(self, old: Destination, policy: Policy, wanted: Table) -> Iterable[str]:
        new = next((d for d in policy.destinations if d.name == old.name), None)
        left = set(ruleset.hosts(new)) if new is not None else set()
        gone = set(ruleset.hosts(old)) - left
        keep = {address for host, address in self._live if host in left}
        for host, address in self._live:
            name = f"dns{address.version}_{ruleset.word(old.name)}"
            if host in gone and address not in keep and name in wanted.sets:
                yield f"add element {TABLE} {name} {{ {address} }}"
                yield f"delete element {TABLE} {name} {{ {address} }}"

    def _remember_elements(self) -> None:
        """After a restart: addresses in a DNS set belong to some host of its destination."""
        if self._table is None:
            return
        for destination in self.policy.destinations:
            for version in (4, 6):
                name = f"dns{version}_{ruleset.word(destination.name)}"
                if name in self._table.sets:
                    for element, _ in self._elements(name):
                        address = ipaddress.ip_address(element)
                        self._answers.setdefault(address, set()).update(ruleset.hosts(destination))

    # -- flows ---------------------------------------------------------------------------------

    def _cut(self, these: Callable[[Flow], bool]) -> None:
        cut = sum(self._conntrack.cut(flow) for flow in list(self._conntrack.flows()) if these(flow))
        if cut:
            log.info("flows cut", extra={"flows": cut})

    def _is_inside(self, flow: Flow, before: Policy | None = None) -> bool:
        """Whether a flow is of ours to judge: it began at a source, of now or of before."""
        if flow.destination in self.policy.guard.own:
            return False  # it ends here: the proxy's, or ssh
        policies = (self.policy, before) if before is not None else (self.policy,)
        return any(policy.source_of(flow.source) is not None for policy in policies)

    def _allows(self, flow: Flow) -> bool:
        source = self.policy.source_of(flow.source)
        protocol = _PROTOCOLS.get(flow.protocol)
        if source is None or protocol is None:
            return False
        asker = self.policy.by_address(source, flow.source)
        places = [Place(host, flow.destination, flow.port, protocol) for host in self._hosts_of(flow)]
        return any(self.policy.decide(asker, Way.NAT, place, _now()).allowed for place in places)

    def _hosts_of(self, flow: Flow) -> Iterable[str]:
        return ("", *self._answers.get(flow.destination, ()))

    # -- counters ------------------------------------------------------------------------------

    def usage(self) -> messages.Usage:
        """Running totals of all accounts, and the refused flows."""
        if self._table is None:
            return messages.Usage((), ())
        names = {pair.mark: (pair.rule.name, pair.destination.name) for pair in ruleset.passings(self.policy)}
        totals: dict[tuple[str, int], list[int]] = {}
        for version in (4, 6):
            for offset, direction in ((0, "out"), (2, "in")):
                for element, counter in self._elements(f"{direction}{version}"):
                    figures = totals.setdefault((element["concat"][0], element["concat"][1]), [0, 0, 0, 0])
                    figures[offset] += counter["packets"]
                    figures[offset + 1] += counter["bytes"]
        counted = tuple(
            messages.Counted(address, *names.get(mark & 0xFFFFFF00, ("", "")), mark & 0xFF, *figures)
            for (address, mark), figures in totals.items()
        )
        return messages.Usage(counted, tuple(self._refused()))

    def _refused(self) -> Iterable[messages.RefusedFlow]:
        for version in (4, 6):
            for element, counter in self._elements(f"refused{version}"):
                source, destination, protocol, port = element["concat"]
                name = {6: "tcp", 17: "udp"}.get(protocol, str(protocol))
                yield messages.RefusedFlow(source, destination, name, port, counter["packets"])

    def _elements(self, name: str) -> Iterable[tuple[Any, dict[str, int]]]:
        for item in self._nft.listing(f"list set {TABLE} {name}"):
            for element in item.get("set", {}).get("elem", ()):
                inner = (
                    element["elem"] if isinstance(element, dict) and "elem" in element else {"val": element}
                )
                yield inner["val"], inner.get("counter", {"packets": 0, "bytes": 0})


def _only_opens(commands: Iterable[str], policy: Policy) -> bool:
    """Whether no flow can have lost its leave: walking all of conntrack takes long after a storm."""
    opening = tuple(f"add element {TABLE} {name}" for name in ("net4_", "net6_", "dns4_", "dns6_"))
    refusing = any(rule.settings.action is RuleAction.REFUSE for rule in policy.rules)
    return not refusing and all(line.startswith(opening) for line in commands)


def _addresses(texts: Iterable[str]) -> list[Address]:
    texts = list(texts)
    if len(texts) > _MOST_ADDRESSES:
        raise BadRequest("too many addresses")
    try:
        return [canonical(ipaddress.ip_address(text)) for text in texts]
    except ValueError:
        raise BadRequest("not an address") from None


def _renew(destination: Destination, address: Address, life: int) -> list[str]:
    return _with_life(f"dns{address.version}_{ruleset.word(destination.name)}", address, life)


def _with_life(name: str, address: Address, life: int) -> list[str]:
    """Kernels before 6.12 do not renew a timeout: add, so that delete succeeds, then add anew, at once."""
    element = f"element {TABLE} {name} {{ {address}"
    return [f"add {element} }}", f"delete {element} }}", f"add {element} timeout {life}s }}"]


def _now() -> datetime:
    return datetime.now().astimezone()
