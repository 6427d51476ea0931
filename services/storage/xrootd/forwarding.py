"""The forwarding proxy with its disk cache (pss, pfc): how nodes without a route read remote files. Pure.

A node asks ``root://edge:1098//root://far.example.org//store/f``; clients build that themselves when
``XROOT_PROXY`` or the XrdClProxyPlugin says so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from edged.config import Config
from edged.config.egress import Destination, EgressRule, Network, RuleAction, Way
from edged.config.xrootd import Proxy
from edged.errors import ConfigError
from services.storage.xrootd.plan import Instance, Plan

SCHEMES = ("root", "roots", "xroot", "xroots")
MOST_ADDRESSES = 256
GIB = 1 << 30


def lines(config: Config, plan: Plan, instance: Instance, report: str) -> Iterator[str]:
    """The proxy's configuration. Raises ConfigError when the policy cannot be told to it."""
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
    yield "\n# nodes of [[egress.source]] only; a peer with a name in the DNS would be judged by that name"
    yield "xrd.network nodnr"
    for pattern in allowed_nodes(config, proxy):
        yield f"xrd.allow host {pattern}"
    yield "\n# wherever the client names, within the rules of [egress]"
    yield "ofs.osslib libXrdPss.so"
    yield "pss.origin ="
    for host in permitted_hosts(config, proxy):
        yield f"pss.permit {host}"
    yield "\n# blocks that were read stay on disk"
    yield "pss.cachelib default"
    yield f"oss.localroot {proxy.cache}"
    yield f"pfc.ram {proxy.memory}"
    yield "pfc.blocksize 512k"
    yield "pfc.prefetch 0"
    gib = max(proxy.cache_size / GIB, 0.01)
    yield f"pfc.diskusage {_fraction(0.90)} {_fraction(0.95)} files {gib * 0.8:.2f}g {gib * 0.9:.2f}g {gib:.2f}g"
    yield "if exec xrootd"
    yield f"xrd.report {report} every 10s link sched xrootd"
    yield "fi"


def _fraction(value: float) -> str:
    return f"{value:.2f}"


def permitted_hosts(config: Config, proxy: Proxy) -> list[str]:
    """Host patterns that an allowing rule names before a refusing one. Raises ConfigError when there are none."""
    egress = config.egress
    assert egress is not None
    destinations = {one.name: one for one in egress.destinations}
    found: dict[str, None] = {}
    for rule in egress.rules:
        if Way.PROXY not in rule.ways:
            continue
        if rule.action is RuleAction.REFUSE:
            raise ConfigError(
                [f"storage.xrootd.proxy: rule {rule.name!r} refuses; xrootd can only be told what is allowed"]
            )
        if not _speaks_of(rule, proxy):
            continue
        for name in rule.to:
            found.update(dict.fromkeys(_hosts(destinations[name])))
    if not found:
        raise ConfigError(["storage.xrootd.proxy: no [[egress.rule]] for everybody allows a host"])
    return list(found)


def _speaks_of(rule: EgressRule, proxy: Proxy) -> bool:
    """The proxy knows where a client is and nothing else: rules about a VO, an account, a job do not count."""
    if rule.vos or rule.accounts or rule.classes or rule.jobs or rule.window is not None:
        return False
    return not rule.sources or proxy.source in rule.sources


def _hosts(destination: Destination) -> Iterator[str]:
    yield from destination.hosts
    for network in destination.networks:
        if network.num_addresses == 1:
            yield _literal(network)


def allowed_nodes(config: Config, proxy: Proxy) -> list[str]:
    """Address patterns of the sources: whole bytes become a ``*``, small ones are spelt out."""
    egress = config.egress
    assert egress is not None
    networks = [
        network
        for source in egress.sources
        if proxy.source in (None, source.name)
        for network in source.networks
    ]
    return list(dict.fromkeys(pattern for network in networks for pattern in _patterns(network)))


def _patterns(network: Network) -> Iterator[str]:
    if isinstance(network, ipaddress.IPv4Network) and network.prefixlen in (8, 16, 24):
        kept = network.prefixlen // 8
        beginning = ".".join(str(network.network_address).split(".")[:kept])
        yield f"[::ffff:{beginning}.*"  # as the server writes an IPv4 peer of its IPv6 socket
        yield f"{beginning}.*"
        return
    if network.num_addresses > MOST_ADDRESSES:
        raise ConfigError(
            [
                f"storage.xrootd.proxy: {network}: xrootd takes IPv4 networks of 8, 16 or 24 bits, "
                f"or at most {MOST_ADDRESSES} addresses"
            ]
        )
    for address in network:
        yield _literal(ipaddress.ip_network(address))


def _literal(network: Network) -> str:
    address = network.network_address
    return f"[{address}]" if address.version == 6 else str(address)
