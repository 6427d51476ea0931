"""Which addresses nobody may be sent to, in whatever form they are written.

``ipaddress.is_global`` is no judge: it calls ``64:ff9b::7f00:1`` (NAT64 of 127.0.0.1),
``2002:7f00:1::`` (6to4 of loopback) and ``::127.0.0.1`` global, and differs between Python
releases. So the list is ours, and an IPv4 address inside an IPv6 one is judged as well.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA special-purpose registries (RFC 6890 and updates); documentation nets are left to the routes.
NEVER: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this network"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local or cloud metadata"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.88.99.0/24", "6to4 relays"),
    ("10.0.0.0/8", "private"),
    ("172.16.0.0/12", "private"),
    ("192.168.0.0/16", "private"),
    ("100.64.0.0/10", "shared address space"),
    ("198.18.0.0/15", "benchmarking"),
    ("::/96", "unspecified, loopback or IPv4-compatible"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("64:ff9b:1::/48", "local-use NAT64"),
    ("100::/64", "discard-only"),
    ("fc00::/7", "private"),
    ("fec0::/10", "site-local"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214 §6.1, the low 64 bits start with it


def canonical(address: Address) -> Address:
    """``::ffff:192.0.2.1`` is the IPv4 address: a socket would reach the same place. Scopes are dropped."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address


def embedded(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """IPv4 addresses that a translator or tunnel on the way could take out of ``address``."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:  # RFC 3056
        yield address.sixtofour
    if address.teredo is not None:  # RFC 4380: server, then client
        yield from address.teredo
    low = int(address)
    if address in _NAT64:  # RFC 6052 §2.1
        yield ipaddress.IPv4Address(low & 0xFFFFFFFF)
    if (low >> 32) & 0xFFFFFFFF in _ISATAP:
        yield ipaddress.IPv4Address(low & 0xFFFFFFFF)


class NetworkSet:
    """Many networks, asked quickly: one dictionary look-up per prefix length in use."""

    __slots__ = ("_masks", "_words", "networks")

    def __init__(self, networks: Iterable[tuple[Network, str]]) -> None:
        self.networks = tuple(networks)
        self._words = {
            (net.version, net.prefixlen, int(net.network_address)): word for net, word in self.networks
        }
        lengths = {(net.version, net.prefixlen, net.max_prefixlen) for net, _ in self.networks}
        self._masks = {
            version: tuple(
                (length, ((1 << length) - 1) << (bits - length))
                for v, length, bits in sorted(lengths, reverse=True)
                if v == version
            )
            for version in (4, 6)
        }

    def find(self, address: Address) -> str | None:
        """The word of the most specific network that holds ``address``."""
        number, version = int(address), address.version
        for length, mask in self._masks[version]:
            word = self._words.get((version, length, number & mask))
            if word is not None:
                return word
        return None

    def __contains__(self, address: Address) -> bool:
        return self.find(address) is not None


@dataclass(slots=True)
class Guard:
    """Says why an address is out of bounds for everybody, before any rule is asked.

    ``deny`` are the site's own nets, ``inside`` the private ones rules may name after all, ``own``
    this machine's addresses: a tunnel back into one of our listeners would be a loop, or a disguise.
    """

    deny: tuple[Network, ...] = ()
    inside: tuple[Network, ...] = ()
    own: frozenset[Address] = frozenset()
    listeners: frozenset[tuple[Address, int]] = frozenset()
    _never: NetworkSet = field(init=False)
    _inside: NetworkSet = field(init=False)

    def __post_init__(self) -> None:
        builtin = ((ipaddress.ip_network(text), word) for text, word in NEVER)
        site: list[tuple[Network, str]] = [(net, "the site's own network") for net in self.deny]
        self._never = NetworkSet([*builtin, *site])
        self._inside = NetworkSet((net, "inside") for net in self.inside)

    def refuses(self, address: Address, port: int) -> str | None:
        """None when the address may be asked about, else the reason, safe to show."""
        address = canonical(address)
        if (address, port) in self.listeners:
            return "that is this gate itself"
        for inner in embedded(address):  # never lifted by `inside`: nobody needs a disguised address
            if word := self._never.find(inner):
                return f"holds an IPv4 address that is refused: {word}"
            if inner in self.own:
                return "holds an IPv4 address of this gate"
        if address in self._inside:
            return None
        if word := self._never.find(address):
            return f"address is refused: {word}"
        if address in self.own:
            return "that is this gate's own address"
        return None

    def networks(self) -> tuple[Network, ...]:
        """The refused networks, for a packet filter."""
        return tuple(net for net, _ in self._never.networks)
