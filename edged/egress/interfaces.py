"""This machine's own addresses, from the kernel's tables."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from edged.egress.addresses import Address

_FIB = Path("/proc/self/net/fib_trie")  # /proc/net itself is hidden by ProcSubset=pid
_IF_INET6 = Path("/proc/self/net/if_inet6")


def own_addresses(fib: Path = _FIB, if_inet6: Path = _IF_INET6) -> frozenset[Address]:
    """Every address the kernel delivers to this machine. Raises OSError: not knowing them is no answer."""
    return frozenset((*local_of_fib(fib.read_text()), *local_of_inet6(if_inet6)))


def local_of_fib(text: str) -> set[Address]:
    """The ``/32 host LOCAL`` leaves of fib_trie (net/ipv4/fib_trie.c)."""
    found: set[Address] = set()
    leaf = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            leaf = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"]:
            found.add(ipaddress.ip_address(leaf))
    return found


def local_of_inet6(file: Path) -> set[Address]:
    """First column of if_inet6; the file is absent where IPv6 is."""
    if not file.exists():
        return set()
    return {ipaddress.ip_address(bytes.fromhex(line.split()[0])) for line in file.read_text().splitlines()}
