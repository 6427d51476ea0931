"""[egress], [[egress.source]], [[egress.destination]], [[egress.rule]], [[egress.relay]], [egress.nat]."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from edged.config.base import AccountNameField, ByteSize, Count, ListenAddress, Seconds, Section, Word
from edged.config.site import Front
from edged.identity.words import JobClass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


class Way(StrEnum):
    """How traffic leaves: through the proxy, through a relay, or routed by NAT."""

    PROXY = "proxy"
    RELAY = "relay"
    NAT = "nat"


class Protocol(StrEnum):
    """Transport protocols a destination may name; the proxy and relays carry TCP only."""

    TCP = "tcp"
    UDP = "udp"


def _network(value: Any) -> Network:
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"not a network: {error}") from None


def _host(value: str) -> str:
    name = value.lower().rstrip(".")
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"not a host name or *.domain: {value!r}")
    if labels[-1].isdigit():
        raise ValueError(f"{value!r} is an address: write it under networks")
    return name


def _ports(value: Any) -> tuple[int, int]:
    """``443`` or ``"9000-9100"`` → inclusive bounds."""
    if isinstance(value, tuple | list) and len(value) == 2:
        low, high = value
    else:
        first, _, second = str(value).partition("-")
        if not first.isdigit() or (second and not second.isdigit()):
            raise ValueError(f"not a port or a range: {value!r}; write 443 or '9000-9100'")
        low, high = int(first), int(second or first)
    if not 0 < low <= high <= 65535:
        raise ValueError(f"not a port or a range: {value!r}")
    return low, high


def _host_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) <= 65535:
        raise ValueError(f"not host:port: {value!r}")
    return value


def _time_of_day(value: Any) -> int:
    match = re.fullmatch(r"([01]\d|2[0-4]):([0-5]\d)", str(value))
    if match is None:
        raise ValueError(f"not a time of day: {value!r}; write 20:00")
    return int(match[1]) * 60 + int(match[2])


NetworkField = Annotated[Network, BeforeValidator(_network)]
HostPattern = Annotated[str, AfterValidator(_host)]
PortRange = Annotated[tuple[int, int], BeforeValidator(_ports)]
HostPort = Annotated[str, AfterValidator(_host_port)]
MinuteOfDay = Annotated[int, BeforeValidator(lambda v: v if isinstance(v, int) else _time_of_day(v))]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class Source(Section):
    """Compute nodes by address: the identity of whoever brings no job token."""

    name: Word
    networks: tuple[NetworkField, ...] = Field(min_length=1)
    vo: Word | None = Field(default=None, description="Whose nodes these are, where one VO owns them")
    account: AccountNameField | None = None
    job_class: JobClass | None = Field(default=None, alias="class")
    require_token: bool = Field(default=False, description="Proxy: answer 407 until a job token comes")


class Destination(Section):
    """A named set of places outside: any host or network in it, at its ports."""

    name: Word
    hosts: tuple[HostPattern, ...] = Field(
        default=(), description="Names; *.example.org is every name below it"
    )
    networks: tuple[NetworkField, ...] = ()
    ports: tuple[PortRange, ...] = Field(default=((443, 443),), min_length=1)
    protocols: tuple[Protocol, ...] = Field(default=(Protocol.TCP,), min_length=1)

    @model_validator(mode="after")
    def _something(self) -> Destination:
        if not self.hosts and not self.networks:
            raise ValueError("names no hosts and no networks")
        return self


class Window(Section):
    """When a rule holds, in the machine's own time zone. ``until`` before ``start`` runs past midnight."""

    start: MinuteOfDay = 0
    until: MinuteOfDay = 24 * 60
    days: tuple[Day, ...] = Field(
        default=(), description="Empty: every day; a night belongs to the day it began"
    )


class RuleAction(StrEnum):
    """``observe`` lets through and notes it as what a closed gate would have refused."""

    ALLOW = "allow"
    REFUSE = "refuse"
    OBSERVE = "observe"


class Per(StrEnum):
    """Whom a rule's limits are counted for, each on its own."""

    SOURCE = "source"
    JOB = "job"
    ACCOUNT = "account"
    VO = "vo"


class EgressRule(Section):
    """The first rule whose words all match decides; no rule matches → refused."""

    name: Word
    action: RuleAction = RuleAction.ALLOW
    sources: tuple[Word, ...] = Field(
        default=(), description="Names of [[egress.source]]; empty: all of them"
    )
    vos: tuple[Word, ...] = ()
    accounts: tuple[AccountNameField, ...] = ()
    classes: tuple[JobClass, ...] = ()
    jobs: tuple[str, ...] = Field(default=(), description="Job ids; such a rule says nothing about NAT")
    to: tuple[Word, ...] = Field(min_length=1, description="Names of [[egress.destination]]")
    ways: tuple[Way, ...] = Field(default=tuple(Way), min_length=1)
    window: Window | None = None
    per: Per = Field(
        default=Per.SOURCE, description="What limits are counted by; NAT always counts by source"
    )
    rate: ByteSize | None = Field(default=None, description="Bytes per second, both ways together")
    connections: Count | None = Field(default=None, description="At once")
    connects_per_s: Count | None = None
    quota: ByteSize | None = Field(default=None, description="Bytes per quota_s, both ways together")
    quota_s: Seconds = 86400.0


class Relay(Section):
    """A TCP service offered inside, for software that knows no proxy."""

    name: Word
    listen: tuple[ListenAddress, ...] = Field(min_length=1)
    to: tuple[HostPort, ...] = Field(
        min_length=1, description="Upstreams host:port; unhealthy ones are passed over"
    )
    proxy_protocol: Literal[0, 1, 2] = Field(default=0, description="PROXY protocol version sent; 0: none")
    health_s: Seconds = Field(default=10.0, description="Period of the connect checks")


class Nat(Section):
    """NAT by netd. Forwarding sysctls are the machine's, see services/egress/README.md."""

    inside: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,15}$")], ...] = Field(
        min_length=1, description="Interfaces towards the compute nodes"
    )
    snat: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...] = Field(
        default=(),
        description="Addresses to appear as, at most one per family; none: the outgoing interface's",
    )
    job_marks: bool = Field(default=False, description="Nodes run the prolog hook: account by DSCP job mark")
    dns_floor_s: Seconds = Field(default=60.0, description="Shortest life of a resolved address")
    dns_grace_s: Seconds = Field(
        default=120.0, description="Added to the TTL, so that a refresh comes before the end"
    )
    refused_keep_s: Seconds = Field(default=600.0, description="How long a refused flow stays listed")
    log_group: int | None = Field(
        default=None, ge=0, le=65535, description="NFLOG group of refused connections"
    )
    usage_s: Seconds = Field(default=10.0, description="How often counters are read into the accounts")


class EgressLimits(Section):
    """What bounds one source and the whole gate."""

    connections: Count = 16384
    connections_per_source: Count = 2048
    head_bytes: ByteSize = Field(default=16384, description="CONNECT or request head")
    head_s: Seconds = Field(default=10.0, description="From accept to the end of the head")
    connect_s: Seconds = Field(default=10.0, description="To reach a destination, all its addresses together")
    resolve_s: Seconds = 5.0
    idle_s: Seconds = Field(default=900.0, description="A tunnel without a byte in either direction")
    life_s: Seconds = Field(default=7 * 86400.0, description="Longest tunnel")
    pipes: Count = Field(default=128, description="Kernel pipes for bulk tunnels; others are copied")
    lookups: Count = Field(default=256, description="Name lookups under way")


class Egress(Section):
    """The gate through which compute nodes reach out. See services/egress/README.md."""

    listen: tuple[ListenAddress, ...] = Field(
        default=(), description="Inside addresses; CONNECT, plain http and SOCKS5 share each port"
    )
    host: str = Field(
        default="", description="What nodes call us, for the jobs' environment; empty: listen[0]"
    )
    no_proxy: tuple[str, ...] = Field(
        default=(), description="Domains and networks jobs reach without the gate"
    )
    sources: tuple[Source, ...] = Field(default=(), alias="source")
    destinations: tuple[Destination, ...] = Field(default=(), alias="destination")
    rules: tuple[EgressRule, ...] = Field(default=(), alias="rule")
    relays: tuple[Relay, ...] = Field(default=(), alias="relay")
    nat: Nat | None = None
    api: Front | None = Field(default=None, description="Usage over HTTP, for administrators")
    deny: tuple[NetworkField, ...] = Field(
        default=(), description="The site's own nets: refused whatever a rule says"
    )
    inside: tuple[NetworkField, ...] = Field(
        default=(), description="Private networks that rules may name after all, e.g. the site's databases"
    )
    resolvers: tuple[str, ...] = Field(
        default=(), description="DNS servers addr[:port]; empty: /etc/resolv.conf"
    )
    limits: EgressLimits = EgressLimits()
    accounts_s: Seconds = Field(default=10.0, description="How often accounts reach the store")
    keep_s: Seconds = Field(default=400 * 86400.0, description="How long hourly accounts are kept")

    @model_validator(mode="after")
    def _names(self) -> Egress:
        problems = [*_twice(self), *_unknown(self), *_snat(self)]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _twice(egress: Egress) -> Iterable[str]:
    tables: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("source", tuple(item.name for item in egress.sources)),
        ("destination", tuple(item.name for item in egress.destinations)),
        ("rule", tuple(item.name for item in egress.rules)),
        ("relay", tuple(item.name for item in egress.relays)),
    )
    for table, names in tables:
        for index, name in enumerate(names):
            if name in names[:index]:
                yield f"{table}[{index}].name: {name!r} is used twice"


def _unknown(egress: Egress) -> Iterable[str]:
    sources = {source.name for source in egress.sources}
    destinations = {destination.name for destination in egress.destinations}
    for index, rule in enumerate(egress.rules):
        for name in rule.sources:
            if name not in sources:
                yield f"rule[{index}].sources: no [[egress.source]] is named {name!r}"
        for name in rule.to:
            if name not in destinations:
                yield f"rule[{index}].to: no [[egress.destination]] is named {name!r}"


def _snat(egress: Egress) -> Iterable[str]:
    versions = [address.version for address in egress.nat.snat] if egress.nat else []
    if len(versions) != len(set(versions)):
        yield "nat.snat: at most one address per family"


def egress_warnings(egress: Egress) -> Iterable[str]:
    """What is legal but unwise."""
    for index, network in enumerate(egress.inside):
        if network.is_loopback or network.is_link_local or network.is_unspecified:
            yield f"egress.inside[{index}]: {network} lets jobs reach this machine itself, or its metadata"
    if egress.nat is None:
        return
    named = {name for rule in egress.rules if Way.NAT in rule.ways for name in rule.to}
    for index, destination in enumerate(egress.destinations):
        patterns = [host for host in destination.hosts if host.startswith("*.")]
        if destination.name in named and patterns and not destination.networks:
            yield f"egress.destination[{index}].hosts: NAT cannot let {patterns[0]} through, only whole names"
