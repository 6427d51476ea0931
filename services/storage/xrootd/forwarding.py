"""The forwarding proxy with its disk cache (pss, pfc): how nodes without a route read remote files. Pure.

A node asks ``root://edge:1098//root://far.example.org//store/f``; clients build that themselves when
``XROOT_PROXY`` or the XrdClProxyPlugin says so. Where it may go is judged by ``passage.py``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from edged.config import Config
from edged.config.egress import Network, Way
from edged.config.xrootd import Proxy
from edged.errors import ConfigError
from services.storage.xrootd.plan import Instance, Plan

SCHEMES = ("root", "roots", "xroot", "xroots")
MOST_ADDRESSES = 256
GIB = 1 << 30
LIBRARY = "libEdgedWay.so"


def library(gate: Path) -> Path:
    """What is preloaded into the proxy, beside edged's part of all servers."""
    return gate.with_name(LIBRARY)


def lines(config: Config, plan: Plan, instance: Instance, gate: Path, report: str) -> Iterator[str]:
    """The proxy's configuration. Raises ConfigError when nothing of the policy is for it."""
    proxy = plan.settings.proxy
    if proxy is None:
        raise ConfigError(["storage.xrootd.proxy: not configured"])
    yield f"\n# {instance.name}: remote files for nodes without a route, through a disk cache"
    yield "all.role server"
    yield f"xrd.port {instance.port}"
    yield f"all.adminpath {instance.directory}/admin"
    yield f"all.pidpath {instance.directory}/admin"
    for scheme in SCHEMES:
        yield f"all.export /{scheme}:/ r/o"
    yield "\n# a peer with a name in the DNS would be judged by that name"
    yield "xrd.network nodnr"
    for pattern in allowed_nodes(config, proxy):
        yield f"xrd.allow host {pattern}"
    yield "\n# wherever the client names that edged allows; pss.permit would open what it refuses"
    yield "ofs.authorize 1"
    yield f"ofs.authlib {gate} instance={instance.name}"
    yield from policy(config)
    yield "ofs.osslib libXrdPss.so"
    yield "pss.origin ="
    yield "\n# blocks that were read stay on disk, under the name of their host"
    yield "pss.cachelib default"
    yield f"pss.namelib -lfncachesrc {gate}"
    yield f"oss.localroot {proxy.cache}"
    yield f"pfc.ram {proxy.memory}"
    yield "pfc.blocksize 512k"
    yield "pfc.prefetch 0"
    gib = max(proxy.cache_size / GIB, 0.01)
    yield f"pfc.diskusage {_fraction(0.90)} {_fraction(0.95)} files {gib * 0.8:.2f}g {gib * 0.9:.2f}g {gib:.2f}g"
    yield "if exec xrootd"
    yield f"xrd.report {report} every 10s link sched xrootd"
    yield "fi"


def environment(plan: Plan, instance: Instance, gate: Path) -> dict[str, str]:
    """What stands between it and the network, and what its client library must not do."""
    return {
        "LD_PRELOAD": str(library(gate)),
        "EDGED_WAY_SOCKET": str(plan.gate),
        "EDGED_WAY_INSTANCE": instance.name,
        "XRD_CONNECTIONWINDOW": "10",  # a far server that is not there: told soon, not after ten minutes
        "XRD_CONNECTIONRETRY": "2",
        "XRD_METALINKPROCESSING": "0",  # a far server's .meta4 file would name other places, local ones too
    }


def policy(config: Config) -> Iterator[str]:
    """The rules as comments: a changed one starts the proxy anew, so that what it no longer allows ends."""
    egress = config.egress
    assert egress is not None
    rules = [rule for rule in egress.rules if Way.PROXY in rule.ways]
    if not rules:
        raise ConfigError(["storage.xrootd.proxy: no [[egress.rule]] speaks of the way 'proxy'"])
    named = {name for rule in rules for name in rule.to}
    for number, rule in enumerate(rules, 1):
        yield f"# rule {number}: {rule.model_dump_json(exclude_defaults=True)}"
    for destination in egress.destinations:
        if destination.name in named:
            yield f"# destination: {destination.model_dump_json(exclude_defaults=True)}"
    for name in ("deny", "inside"):
        yield f"# {name}: {' '.join(map(str, getattr(egress, name))) or '-'}"


def _fraction(value: float) -> str:
    return f"{value:.2f}"


def allowed_nodes(config: Config, proxy: Proxy) -> list[str]:
    """Address patterns of the sources, for xrd.allow; none where they cannot all be told to it.

    Whole bytes become a ``*``, small networks are spelt out. Each request is judged again by the real policy.
    """
    egress = config.egress
    assert egress is not None
    networks = [
        network
        for source in egress.sources
        if proxy.source in (None, source.name)
        for network in source.networks
    ]
    if not all(_can_be_told(network) for network in networks):
        return []
    return list(dict.fromkeys(pattern for network in networks for pattern in _patterns(network)))


def _can_be_told(network: Network) -> bool:
    return _whole_bytes(network) or network.num_addresses <= MOST_ADDRESSES


def _whole_bytes(network: Network) -> bool:
    return isinstance(network, ipaddress.IPv4Network) and network.prefixlen in (8, 16, 24)


def _patterns(network: Network) -> Iterator[str]:
    if _whole_bytes(network):
        kept = network.prefixlen // 8
        beginning = ".".join(str(network.network_address).split(".")[:kept])
        yield f"[::ffff:{beginning}.*"  # as the server writes an IPv4 peer of its IPv6 socket
        yield f"{beginning}.*"
        return
    for address in network:
        yield f"[{address}]" if address.version == 6 else str(address)
