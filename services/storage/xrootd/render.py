"""The server's configurations as text: the same input gives the same bytes. Pure.

Sources: XRootD 5.x configuration references (xrd/xrootd, ofs/oss, cms, sec, pss/pfc); what differs
between 5.5 and 6 is asked of ``Installation``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from edged.config import Config
from services.storage.xrootd import forwarding
from services.storage.xrootd.installation import Installation
from services.storage.xrootd.plan import Instance, Plan, Role, Shown

HEADER = "# Written by edged from edged.toml; changes here are lost. `edged xrootd render` shows what it would write.\n"
PROBE_ISSUER = "https://probe.edged.invalid/"  # signs the probes' tokens; its key never leaves this machine
CONFIG, SCITOKENS, TREE, ADMIN, CERTIFICATE, KEY, STAMP = (
    "xrootd.cfg",
    "scitokens.cfg",
    "tree",
    "admin",
    "cert.pem",
    "key.pem",
    "stamp",
)


def files(
    config: Config, plan: Plan, instance: Instance, installed: Installation, *, report: str
) -> Mapping[str, str]:
    """Name → content of all that ``instance`` reads. ``report``: where its summary stream goes, host:port."""
    if instance.role is Role.PROXY:
        return {CONFIG: _text(forwarding.lines(config, plan, instance, installed.gate, report))}
    return {
        CONFIG: _text(_server(plan, instance, installed, report)),
        SCITOKENS: _text(_scitokens(plan, instance)),
    }


def links(instance: Instance) -> Mapping[str, Path]:
    """Below ``tree``: relative name → the directory it shows."""
    return {one.prefix.strip("/"): one.root for one in instance.exports if one.prefix != "/"}


def _text(lines: Iterable[str]) -> str:
    return HEADER + "".join(f"{line}\n" for line in lines)


def _server(plan: Plan, instance: Instance, installed: Installation, report: str) -> Iterator[str]:
    yield f"\n# {instance.name}: {', '.join(one.prefix for one in instance.exports)} as {instance.account}"
    yield from _cluster(plan, instance)
    yield from _places(instance)
    yield from _protection(plan, instance)
    yield from _judgement(plan, instance, installed)
    yield "\n# the checksums of WebDAV, in the same attributes (user.XrdCks.*)"
    yield "xrootd.chksum max 4 adler32 crc32c md5"
    yield "\n# how it is doing, told to edged"
    yield "if exec xrootd"
    yield f"xrd.report {report} every 10s link sched xrootd ofs"
    yield "fi"
    yield f"xrd.sched maxt {plan.settings.threads}"


def _cluster(plan: Plan, instance: Instance) -> Iterator[str]:
    settings = plan.settings
    if instance.role is Role.MANAGER:
        yield "all.role manager"
    else:
        yield "all.role server"
    if not instance.clustered:
        yield f"xrd.port {instance.port}"
        return
    cmsd = str(settings.cmsd_port) if instance.role is Role.MANAGER else "any"
    yield f"all.manager {plan.host}:{settings.cmsd_port}"
    yield f"if exec cmsd\nxrd.port {cmsd}\nelse\nxrd.port {instance.port}\nfi"
    if instance.role is Role.MANAGER:
        yield "# a server whose cmsd is away is asked for again after a second, not after 15"
        yield f"cms.delay startup {settings.startup_s} servers 1 service 1 suspend 1"
        yield "# a client that comes while the cmsd is away: asked to come back after this, not after 10"
        yield "cms.conwait 2"
    yield "# who answers for a path is known by the path: without this each new name costs 5 s"
    yield "cms.dfs lookup distrib redirect immed"
    yield f"cms.allow host {plan.host}"
    yield "cms.allow host localhost"
    yield "# redirects name the host, never an address: certificates are for names"
    yield "xrd.network dnr rpipa"


def _places(instance: Instance) -> Iterator[str]:
    yield f"\nall.adminpath {instance.directory}/{ADMIN}"
    yield f"all.pidpath {instance.directory}/{ADMIN}"
    whole = next((one.root for one in instance.exports if one.prefix == "/"), None)
    if instance.role is not Role.MANAGER:
        yield f"oss.localroot {whole or instance.directory / TREE}"
    for one in instance.exports:
        yield f"all.export {one.prefix}"
    if instance.role is Role.MANAGER:
        yield "# other paths than these are nobody's"


def _protection(plan: Plan, instance: Instance) -> Iterator[str]:
    yield "\n# tokens only (ztn), so always TLS; edged's own endpoint serves https"
    yield f"xrd.tls {instance.directory}/{CERTIFICATE} {instance.directory}/{KEY}"
    yield "xrd.tlsca noverify"
    yield "xrootd.tls capable all" + ("" if plan.settings.data_tls else " -data")
    yield "xrootd.seclib libXrdSec.so"
    yield "sec.protocol ztn"
    yield "sec.protbind * only ztn"


def _judgement(plan: Plan, instance: Instance, installed: Installation) -> Iterator[str]:
    yield "\n# the signature is checked at login with the keys that edged writes; what a token may do, edged says:"
    yield "# the server's own rule takes /database for a part of /data and a scope without path for /"
    yield "ofs.authorize 1"
    yield f"ofs.authlib libXrdAccSciTokens.so config={instance.directory}/{SCITOKENS}"
    exports = (
        ""
        if instance.role is Role.MANAGER
        else "".join(f" export={one.prefix}:{one.root}" for one in instance.exports)
    )
    several = " several=1" if instance.role is Role.MULTIUSER else ""
    yield f"ofs.authlib ++ {installed.gate} instance={instance.name} socket={plan.gate}{exports}{several}"
    if instance.role is Role.MULTIUSER:
        yield "\n# each request runs as the account that edged names"
        yield f"ofs.osslib ++ {installed.multiuser}"
        yield f"ofs.ckslib * {installed.multiuser}"
        yield "multiuser.umask 0027"


def _scitokens(plan: Plan, instance: Instance) -> Iterator[str]:
    """Who may log in. Only the gate says what they may do."""
    yield "[Global]"
    yield "audience = " + ", ".join(dict.fromkeys(_audiences(plan, instance.exports)))
    for one in _by_vo(instance.exports):
        for issuer in plan.issuers[one.vo]:
            yield from _issuer(f"{one.vo} {issuer.url}", issuer.url, one)
    yield "\n# edged's own probes"
    yield from _issuer("edged probe", PROBE_ISSUER, None)


def _issuer(name: str, url: str, one: Shown | None) -> Iterator[str]:
    yield f"\n[Issuer {name}]"
    yield f"issuer = {url}"
    yield f"base_path = {one.prefix if one else '/'}"
    yield "authorization_strategy = capability"


def _audiences(plan: Plan, exports: Iterable[Shown]) -> Iterator[str]:
    for one in exports:
        for issuer in plan.issuers[one.vo]:
            yield from issuer.audience


def _by_vo(exports: Iterable[Shown]) -> Iterator[Shown]:
    seen: set[str] = set()
    for one in exports:
        if one.vo not in seen:
            seen.add(one.vo)
            yield one
