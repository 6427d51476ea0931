"""The policy's address part as a declared table. Pure.

Packets from inside go ``outbound``: known flows are counted and pass, new ones walk ``decide`` in the
order of the rules. Nothing from outside reaches a node that did not ask for it. Whoever reads the
connection mark finds rule and destination in its upper three bytes, the job mark in the lowest.
"""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from edged.config.egress import Nat, RuleAction, Source, Way
from edged.egress.addresses import Network
from edged.egress.destinations import Destination
from edged.egress.policy import Policy, Rule
from services.egress.netd.table import Chain, SetOf, Table

JOB_MARKS = 63  # values DSCP has besides the default
_FAMILIES = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))
_SIZE = 65536
COUNTERS = ("refused", "limited", "unsolicited")


def word(name: str) -> str:
    """A configured name as an nft identifier; different names stay different."""
    return name.replace("_", "__").replace("-", "_d").replace(".", "_p")


@dataclass(frozen=True, slots=True)
class Passing:
    """One (rule, destination) pair that lets through, with the number it has in connection marks."""

    rule: Rule
    destination: Destination
    number: int

    @property
    def chain(self) -> str:
        return f"pass_{word(self.rule.name)}_to_{word(self.destination.name)}"

    @property
    def mark(self) -> int:
        return self.number << 8


def passings(policy: Policy) -> tuple[Passing, ...]:
    """The pairs NAT can let through. Numbers hang on the names, so they outlive a reload."""
    found: list[Passing] = []
    taken: set[int] = {0}
    for rule in policy.rules:
        if (
            Way.NAT not in rule.settings.ways
            or rule.settings.jobs
            or rule.settings.action is RuleAction.REFUSE
        ):
            continue
        for destination in rule.destinations:
            number = zlib.crc32(f"{rule.name}\0{destination.name}".encode()) & 0x7FFFFF
            while number in taken:
                number = (number + 1) & 0x7FFFFF
            taken.add(number)
            found.append(Passing(rule, destination, number))
    return tuple(found)


def table(policy: Policy, nat: Nat, moment: datetime) -> Table:
    """What the kernel should hold at ``moment`` (local time)."""
    pairs = passings(policy)
    sets = dict(_sets(policy, nat, pairs))
    chains = {
        "clamp": Chain(tuple(_clamp(nat)), "type filter hook forward priority mangle"),
        "refuse": Chain(tuple(_refuse(nat))),
        "limited": Chain(('counter name "limited"', "goto refuse")),
        "counted_out": Chain((*_metered(pairs, "saddr"), *_counted("out", "saddr"), "accept")),
        "counted_in": Chain((*_metered(pairs, "daddr"), *_counted("in", "daddr"), "accept")),
        **{pair.chain: Chain(tuple(_pass(pair, nat))) for pair in pairs},
        "decide": Chain(tuple(_policy(policy, pairs, moment))),
        "outbound": Chain(tuple(_outbound())),
        "inbound": Chain(("ct state established,related goto counted_in", 'counter name "unsolicited" drop')),
        "forward": Chain(tuple(_forward(nat)), "type filter hook forward priority filter"),
        "postrouting": Chain(tuple(_postrouting(nat)), "type nat hook postrouting priority srcnat"),
    }
    names = {rule.name for rule in policy.rules if Way.NAT in rule.settings.ways}
    return Table(sets, frozenset((*COUNTERS, *(f"rule_{word(name)}" for name in names))), chains)


def closed(policy: Policy, nat: Nat, moment: datetime) -> Table:
    """`off`: nothing from inside passes, and every account stays."""
    full = table(policy, nat, moment)
    chains = {**full.chains, "outbound": Chain(("goto refuse",)), "inbound": Chain(("drop",))}
    return Table(full.sets, full.counters, chains)


# -- sets --------------------------------------------------------------------------------------


def _sets(policy: Policy, nat: Nat, pairs: Iterable[Passing]) -> Iterator[tuple[str, SetOf]]:
    own = disjoint(policy.sources)
    never = policy.guard.networks()
    for version, _, kind in _FAMILIES:
        interval = f"type {kind} ; flags interval"
        yield f"all{version}", SetOf(interval, _of(version, (n for nets in own.values() for n in nets)))
        yield f"never{version}", SetOf(interval, _of(version, _without(never, policy.guard.inside)))
        yield f"gone{version}", SetOf(f"type {kind} ; flags timeout")
        for name, networks in own.items():
            yield f"src{version}_{word(name)}", SetOf(interval, _of(version, networks))
        for destination in policy.destinations:
            name = word(destination.name)
            yield f"net{version}_{name}", SetOf(interval, _of(version, destination.settings.networks))
            if hosts(destination):
                yield f"dns{version}_{name}", SetOf(f"type {kind} ; flags timeout")
        account = f"type {kind} . mark ; size {_SIZE} ; flags dynamic,timeout ; timeout 1d ; counter"
        yield f"out{version}", SetOf(account)
        yield f"in{version}", SetOf(account)
        refused = f"type {kind} . {kind} . inet_proto . inet_service ; size {_SIZE} ; flags dynamic,timeout"
        yield f"refused{version}", SetOf(f"{refused} ; timeout {int(nat.refused_keep_s)}s ; counter")
        for pair in pairs:
            yield from _limit_sets(pair.rule, version, kind)


def _limit_sets(rule: Rule, version: int, kind: str) -> Iterator[tuple[str, SetOf]]:
    settings, name = rule.settings, word(rule.name)
    timed = f"type {kind} ; size {_SIZE} ; flags dynamic,timeout"
    if settings.connections is not None:
        yield f"open{version}_{name}", SetOf(f"type {kind} ; size {_SIZE} ; flags dynamic")
    if settings.connects_per_s is not None:
        yield f"new{version}_{name}", SetOf(f"{timed} ; timeout 60s")
    if settings.rate is not None:
        yield f"rate{version}_{name}", SetOf(f"{timed} ; timeout 60s")
    if settings.quota is not None:
        yield f"quota{version}_{name}", SetOf(f"{timed} ; timeout {int(settings.quota_s)}s")


def hosts(destination: Destination) -> tuple[str, ...]:
    """Names whose answers a packet filter can hold: patterns cannot be resolved."""
    return tuple(host for host in destination.settings.hosts if not host.startswith("*."))


def disjoint(sources: Iterable[Source]) -> dict[str, tuple[Network, ...]]:
    """Each source without the parts that a more specific one has: the proxy's rule, for sets."""
    everything = [(source.name, net) for source in sources for net in source.networks]
    return {
        source.name: tuple(
            piece
            for net in source.networks
            for piece in _minus(net, [n for name, n in everything if name != source.name])
        )
        for source in sources
    }


def _minus(net: Network, others: Iterable[Network]) -> list[Network]:
    pieces: list[Network] = [net]
    for other in others:
        if other.version == net.version and other != net and _inside(other, net):
            pieces = [part for piece in pieces for part in _exclude(piece, other)]
    return pieces


def _without(networks: Iterable[Network], holes: Iterable[Network]) -> Iterator[Network]:
    """``networks`` with ``holes`` cut out of them, whichever of both is larger."""
    holes = tuple(holes)
    for net in networks:
        if not any(_inside(net, hole) for hole in holes):
            yield from _minus(net, holes)


def _exclude(piece: Network, other: Network) -> list[Network]:
    if _inside(piece, other):
        return []
    return list(piece.address_exclude(other)) if _inside(other, piece) else [piece]  # type: ignore[arg-type]


def _inside(small: Network, large: Network) -> bool:
    return small.version == large.version and small.subnet_of(large)  # type: ignore[arg-type]


def _of(version: int, networks: Iterable[Network]) -> frozenset[str]:
    """One family's networks, merged where they touch: intervals must not overlap.

    ipaddress.collapse_addresses does the same in three times the time, and a change of one among
    thousands walks through here (tests/bench/egress_nat.py).
    """
    mine = [net for net in networks if net.version == version]
    names = {(int(net.network_address), net.prefixlen): str(net) for net in mine}
    bits = 32 if version == 4 else 128
    merged: list[tuple[int, int]] = []
    for start, length in sorted(names):
        if merged and start < merged[-1][0] + (1 << (bits - merged[-1][1])):
            continue  # inside the one before: sorted, the larger of two that begin together comes first
        merged.append((start, length))
        while len(merged) > 1 and _siblings(*merged[-2], *merged[-1], bits):
            merged.pop()
            start, length = merged.pop()
            merged.append((start, length - 1))
    host = f"/{bits}"
    shown = (names.get(span) or _text(span, version) for span in merged)
    return frozenset(text.removesuffix(host) for text in shown)


def _siblings(low: int, low_length: int, high: int, high_length: int, bits: int) -> bool:
    size = 1 << (bits - low_length)
    return low_length == high_length and high == low + size and not low & size


def _text(span: tuple[int, int], version: int) -> str:
    make = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    return str(make(span))


# -- chains ------------------------------------------------------------------------------------


def _forward(nat: Nat) -> Iterator[str]:
    inside = ", ".join(f'"{name}"' for name in nat.inside)
    yield f"iifname {{ {inside} }} goto outbound"
    yield f"oifname {{ {inside} }} goto inbound"


def _outbound() -> Iterator[str]:
    for version, family, _ in _FAMILIES:
        yield f"{family} saddr @gone{version} goto refuse"
        yield f"{family} daddr @gone{version} goto refuse"
    yield "ct state established,related goto counted_out"
    yield "ct state invalid drop"
    for version, family, _ in _FAMILIES:
        yield f"{family} saddr != @all{version} goto refuse"
        yield f"{family} daddr @never{version} goto refuse"
    yield "jump decide"
    yield "goto refuse"


def _policy(policy: Policy, pairs: Iterable[Passing], moment: datetime) -> Iterator[str]:
    chain_of = {(pair.rule.name, pair.destination.name): pair.chain for pair in pairs}
    for rule in policy.rules:
        if Way.NAT not in rule.settings.ways or rule.settings.jobs or not rule.holds_at(moment):
            continue
        for destination in rule.destinations:
            target = chain_of.get((rule.name, destination.name), "refuse")
            for match in _matches(policy, rule, destination):
                yield f"{match} goto {target}"


def _matches(policy: Policy, rule: Rule, destination: Destination) -> Iterator[str]:
    settings = destination.settings
    ports = ", ".join(
        f"{low}-{high}" if high > low else str(low) for low, high in sorted(set(settings.ports))
    )
    for version, family, _ in _FAMILIES:
        places = [f"net{version}"] if any(n.version == version for n in settings.networks) else []
        places += [f"dns{version}"] if hosts(destination) else []
        for who in _who(policy, rule, version, family):
            for place in places:
                where = f"{family} daddr @{place}_{word(destination.name)}"
                for protocol in settings.protocols:
                    yield f"{who}{where} {protocol} dport {{ {ports} }}"


def _who(policy: Policy, rule: Rule, version: int, family: str) -> list[str]:
    """'' when the rule is about every source, else one match a source it is about."""
    about = [s for s in policy.sources if rule.speaks_of(policy.by_address(s, s.networks[0][0]), Way.NAT)]
    if len(about) == len(tuple(policy.sources)):
        return [""]
    return [f"{family} saddr @src{version}_{word(source.name)} " for source in about]


def _pass(pair: Passing, nat: Nat) -> Iterator[str]:
    name, settings = word(pair.rule.name), pair.rule.settings
    for version, family, _ in _FAMILIES:
        if settings.connections is not None:
            count = f"ct count over {settings.connections}"
            yield f"add @open{version}_{name} {{ {family} saddr {count} }} goto limited"
        if settings.connects_per_s is not None:
            rate = f"limit rate over {settings.connects_per_s}/second burst {settings.connects_per_s} packets"
            yield f"update @new{version}_{name} {{ {family} saddr {rate} }} goto limited"
    yield f"ct mark set {pair.mark:#x}"
    if nat.job_marks:
        for _, family, _ in _FAMILIES:
            marks = ", ".join(f"{n} : {pair.mark | n:#x}" for n in range(1, JOB_MARKS + 1))
            yield f"{family} dscp != 0 ct mark set {family} dscp map {{ {marks} }}"
    yield f'counter name "rule_{name}"'
    yield "goto counted_out"


def _metered(pairs: Iterable[Passing], field: str) -> Iterator[str]:
    """Rate and quota: both directions of a rule's flows, counted together by the node's address."""
    for pair in pairs:
        name, settings = word(pair.rule.name), pair.rule.settings
        for version, family, _ in _FAMILIES:
            match = f"ct mark & 0xffffff00 == {pair.mark:#x}"
            if settings.rate is not None:
                over = f"limit rate over {settings.rate} bytes/second burst {max(settings.rate, 65536)} bytes"
                yield f"{match} update @rate{version}_{name} {{ {family} {field} {over} }} drop"
            if settings.quota is not None:
                over = f"quota over {settings.quota} bytes"
                yield f"{match} add @quota{version}_{name} {{ {family} {field} {over} }} drop"


def _counted(direction: str, field: str) -> Iterator[str]:
    for version, family, _ in _FAMILIES:
        yield f"update @{direction}{version} {{ {family} {field} . ct mark }}"


def _refuse(nat: Nat) -> Iterator[str]:
    for version, family, _ in _FAMILIES:
        key = f"{family} saddr . {family} daddr . meta l4proto . th dport"
        yield f"meta l4proto {{ tcp, udp }} update @refused{version} {{ {key} }}"
    if nat.log_group is not None:
        yield f'limit rate 5/second log prefix "edged refused " group {nat.log_group}'
    yield 'counter name "refused"'
    yield "meta l4proto tcp reject with tcp reset"
    yield "reject with icmpx admin-prohibited"


def _clamp(nat: Nat) -> Iterator[str]:
    inside = ", ".join(f'"{name}"' for name in nat.inside)
    for direction in ("iifname", "oifname"):
        yield f"{direction} {{ {inside} }} tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu"


def _postrouting(nat: Nat) -> Iterator[str]:
    inside = ", ".join(f'"{name}"' for name in nat.inside)
    for version, family, _ in _FAMILIES:
        given = [str(address) for address in nat.snat if address.version == version]
        action = f"snat {family} to {given[0]}" if given else "masquerade"
        yield f"{family} saddr @all{version} oifname != {{ {inside} }} {action} fully-random"
