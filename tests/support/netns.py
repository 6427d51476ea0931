"""Network namespaces as a small site: nodes inside, the edge between, the internet outside.

node 10.77.0.2, fd77::2  --ib0--  10.77.0.1 edge 198.51.100.1  --wan--  internet 198.51.100.2
                                  fd77::1        2001:db8:1::1           2001:db8:1::2
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to make network namespaces")

NODE4, NODE6 = "10.77.0.2", "fd77::2"
EDGE4, EDGE6 = "10.77.0.1", "fd77::1"
OUT4, OUT6 = "198.51.100.1", "2001:db8:1::1"
NET4, NET6 = "198.51.100.2", "2001:db8:1::2"
SITE_NET = "10.88.0.2"  # a service inside the site that no rule may open


@dataclass(slots=True)
class Namespace:
    """One network namespace; what runs in it is killed when it goes."""

    name: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def argv(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, timeout_s: float = 30, check: bool = True) -> str:
        """Output of a command in here."""
        done = subprocess.run(self.argv(argv), capture_output=True, text=True, timeout=timeout_s, check=False)
        if check and done.returncode:
            raise AssertionError(f"{argv}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *argv: str, **options: object) -> subprocess.Popen[bytes]:
        """A process in here, ended with the site."""
        process = subprocess.Popen(self.argv(argv), **options)  # type: ignore[call-overload]
        self.processes.append(process)
        return process  # type: ignore[no-any-return]


@dataclass(slots=True)
class Site:
    """Three namespaces, joined."""

    node: Namespace
    edge: Namespace
    internet: Namespace

    def everywhere(self) -> tuple[Namespace, ...]:
        return (self.node, self.edge, self.internet)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


def _address(space: Namespace, device: str, *addresses: str) -> None:
    for address in addresses:
        extra = ("nodad",) if ":" in address else ()
        space.run("ip", "address", "add", address, "dev", device, *extra)
    space.run("ip", "link", "set", device, "up")


@contextmanager
def far_side(tag: str) -> Iterator[tuple[Namespace, str, str]]:
    """One namespace beyond a link of its own: the namespace, its address, and ours."""
    number = os.getpid() % 16000
    net = f"10.{64 + number // 256}.{number % 256}"  # 10.64.0.0/10: one /24 for each test process
    space, device = Namespace(f"{tag}-{os.getpid()}"), f"far{os.getpid()}"
    try:
        _ip("netns", "add", space.name)
        space.run("ip", "link", "set", "lo", "up")
        _ip("link", "add", device, "type", "veth", "peer", "ib0", "netns", space.name)
        _ip("address", "add", f"{net}.1/24", "dev", device)
        _ip("link", "set", device, "up")
        _address(space, "ib0", f"{net}.2/24")
        yield space, f"{net}.2", f"{net}.1"
    finally:
        for process in space.processes:
            process.kill()
            process.wait(10)
        subprocess.run(["ip", "link", "del", device], check=False, timeout=10)
        subprocess.run(["ip", "netns", "del", space.name], check=False, timeout=10)


@contextmanager
def site(tag: str, *, inside_mtu: int = 1500, forward: bool = True) -> Iterator[Site]:
    """A site whose namespaces carry ``tag`` and this process's number in their names."""
    unique = f"{tag}-{os.getpid()}"
    spaces = [Namespace(f"{part}-{unique}") for part in ("node", "edge", "inet")]
    node, edge, internet = spaces
    try:
        for space in spaces:
            _ip("netns", "add", space.name)
            space.run("ip", "link", "set", "lo", "up")
        for left, device, right, other in ((node, "ib0", edge, "ib0"), (edge, "wan", internet, "wan")):
            _ip("link", "add", device, "netns", left.name, "type", "veth", "peer", other, "netns", right.name)
        for space in (node, edge):
            space.run("ip", "link", "set", "ib0", "mtu", str(inside_mtu))
        _address(node, "ib0", f"{NODE4}/24", f"{NODE6}/64")
        _address(edge, "ib0", f"{EDGE4}/24", f"{EDGE6}/64")
        _address(edge, "wan", f"{OUT4}/24", f"{OUT6}/64")
        _address(internet, "wan", f"{NET4}/24", f"{NET6}/64", f"{SITE_NET}/32")
        node.run("ip", "route", "add", "default", "via", EDGE4)
        node.run("ip", "-6", "route", "add", "default", "via", EDGE6)
        edge.run("ip", "route", "add", f"{SITE_NET}/32", "via", NET4)
        if forward:
            edge.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield Site(node, edge, internet)
    finally:
        for space in spaces:
            for process in space.processes:
                process.kill()
                process.wait(10)
            subprocess.run(["ip", "netns", "del", space.name], check=False, timeout=10)
