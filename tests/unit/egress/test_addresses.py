"""Nobody may be sent to these, however they are written."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.egress.addresses import Guard, NetworkSet, canonical, embedded

GUARD = Guard(
    deny=(ipaddress.ip_network("203.0.113.0/24"),),
    inside=(ipaddress.ip_network("10.5.0.0/16"),),
    own=frozenset((ipaddress.ip_address("198.51.100.1"),)),
    listeners=frozenset(((ipaddress.ip_address("10.5.0.1"), 3128),)),
)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "0.0.0.0", "10.0.0.1", "169.254.169.254", "100.64.1.1", "224.0.0.1", "255.255.255.255",
        "192.0.0.8", "192.168.1.1", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:c0a8:101::1", "fe80::1", "fc00::1",
        "ff02::1", "2001:0:7f00:1::", "2001:db8::5efe:7f00:1", "203.0.113.9", "::ffff:203.0.113.9",
        "64:ff9b::cb00:7109", "198.51.100.1", "::ffff:198.51.100.1", "64:ff9b::c633:6401", "64:ff9b::a05:1",
    ],
)  # fmt: skip
def test_refused_in_every_form(text: str) -> None:
    assert GUARD.refuses(ipaddress.ip_address(text), 443) is not None


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "8.8.8.8", "10.5.0.1", "64:ff9b::808:808"])
def test_open_to_the_rules(text: str) -> None:
    assert GUARD.refuses(ipaddress.ip_address(text), 443) is None


def test_own_listener_even_where_inside_is_open() -> None:
    assert GUARD.refuses(ipaddress.ip_address("10.5.0.1"), 3128) == "that is this gate itself"


@given(st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_loopback_in_every_disguise(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    disguises = [
        ipaddress.IPv6Address(0xFFFF << 32 | number),
        ipaddress.IPv6Address(0x64FF9B << 96 | number),
        ipaddress.IPv6Address(0x2002 << 112 | number << 80),
        ipaddress.IPv6Address(0x20010DB8 << 96 | 0x5EFE << 32 | number),
        ipaddress.IPv6Address(0x2001 << 112 | (number ^ 0xFFFFFFFF)),
    ]
    for address in disguises:
        assert inner in list(embedded(address))
        assert GUARD.refuses(address, 1) is not None


@given(st.lists(st.ip_addresses(v=4), min_size=1), st.ip_addresses(v=4), st.integers(8, 32))
def test_a_set_answers_like_a_scan(
    bases: list[ipaddress.IPv4Address], asked: ipaddress.IPv4Address, size: int
) -> None:
    nets = [ipaddress.ip_network((base, size), strict=False) for base in bases]
    found = NetworkSet((net, str(net)) for net in nets)
    assert (asked in found) == any(asked in net for net in nets)
    assert all(base in found for base in bases)


def test_canonical_drops_scope_and_mapping() -> None:
    assert canonical(ipaddress.ip_address("::ffff:192.0.2.1")) == ipaddress.ip_address("192.0.2.1")
    assert canonical(ipaddress.ip_address("fe80::1%eth0")) == ipaddress.ip_address("fe80::1")
