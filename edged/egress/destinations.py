"""Destinations: named sets of places outside, by name, by network, at ports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edged.config import egress as settings
from edged.egress.addresses import Address, NetworkSet


class HostSet:
    """Names and ``*.domain`` patterns; a name is found by its own labels, not by a scan."""

    __slots__ = ("_below", "_exact")

    def __init__(self, patterns: Iterable[str]) -> None:
        everything = tuple(patterns)
        self._exact = frozenset(p for p in everything if not p.startswith("*."))
        self._below = frozenset(p[2:] for p in everything if p.startswith("*."))

    def __contains__(self, host: str) -> bool:
        if host in self._exact:
            return True
        if not self._below:
            return False
        rest = host
        while (dot := rest.find(".")) >= 0:
            rest = rest[dot + 1 :]
            if rest in self._below:
                return True
        return False


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody wants to go: the name they gave ('' for an address), one resolved address, a port."""

    host: str
    address: Address | None
    port: int
    protocol: settings.Protocol = settings.Protocol.TCP


class Destination:
    """One ``[[egress.destination]]``, ready to be asked."""

    __slots__ = ("_hosts", "_networks", "_ports", "_protocols", "name", "settings")

    def __init__(self, config: settings.Destination) -> None:
        self.name = config.name
        self.settings = config
        self._hosts = HostSet(config.hosts)
        self._networks = NetworkSet((network, config.name) for network in config.networks)
        self._ports = config.ports
        self._protocols = frozenset(config.protocols)

    def has_port(self, port: int, protocol: settings.Protocol) -> bool:
        """Whether the port is one of ours, whoever the host is."""
        return protocol in self._protocols and any(low <= port <= high for low, high in self._ports)

    def has(self, place: Place) -> bool:
        """By name, or by the address the name came to."""
        if not self.has_port(place.port, place.protocol):
            return False
        if place.host and place.host in self._hosts:
            return True
        return place.address is not None and place.address in self._networks

    def may_hold(self, host: str, port: int, protocol: settings.Protocol) -> bool:
        """Whether an address of ``host`` could be in here: decides if asking the DNS makes sense."""
        return self.has_port(port, protocol) and (host in self._hosts or bool(self._networks.networks))
