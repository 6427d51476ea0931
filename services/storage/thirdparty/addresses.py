"""Where third-party copies may connect to, decided on resolved addresses. Pure.

An IPv6 address may carry an IPv4 one (mapped, compatible, NAT64, 6to4, Teredo); then both are judged,
because a translator on the way would deliver to the inner one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# prefix → how many bits the embedded IPv4 address is shifted to the left (RFC 4291, 6052, 8215, 3056)
_EMBEDDING: tuple[tuple[ipaddress.IPv6Network, int], ...] = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
_TEREDO = ipaddress.IPv6Network("2001::/32")


def embedded(address: Address) -> Iterator[Address]:
    """The address itself, then every IPv4 address inside it."""
    yield address
    if isinstance(address, ipaddress.IPv4Address):
        return
    number = int(address)
    for network, shift in _EMBEDDING:
        if address in network:
            yield ipaddress.IPv4Address(number >> shift & 0xFFFFFFFF)
    if address in _TEREDO:  # server, and the client with its bits inverted (RFC 4380 §4)
        yield ipaddress.IPv4Address(number >> 64 & 0xFFFFFFFF)
        yield ipaddress.IPv4Address(~number & 0xFFFFFFFF)


class AddressPolicy:
    """The site's deny list and its exceptions."""

    def __init__(self, deny: Iterable[str], allow: Iterable[str]) -> None:
        self._deny: tuple[Network, ...] = tuple(map(ipaddress.ip_network, deny))
        self._allow: tuple[Network, ...] = tuple(map(ipaddress.ip_network, allow))

    def permits(self, text: str) -> bool:
        """Whether a connection to this address is allowed. Zone ids and nonsense are not."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
            return False
        return all(self._single(one) for one in embedded(address))

    def _single(self, address: Address) -> bool:
        if any(address in network for network in self._allow if network.version == address.version):
            return True
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            return True  # judged by the IPv4 address inside
        return not any(address in network for network in self._deny if network.version == address.version)
