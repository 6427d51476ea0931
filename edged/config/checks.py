"""Rules that span sections: what no single field can know."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from edged.config.batch import cluster_problems, cluster_warnings
from edged.config.egress import egress_warnings
from edged.config.listeners import listener_problems
from edged.config.sockets import socket_problems

if TYPE_CHECKING:
    from edged.config.jobs import Jobs
    from edged.config.load import Config


def problems(config: Config) -> Iterator[str]:
    """Errors, each ``dotted.path: what to fix``."""
    yield from listener_problems(config)
    yield from socket_problems(config)
    yield from _edges(config)
    yield from _issuers(config)
    yield from _mappings(config)
    yield from _accounts(config)
    yield from _queues(config)
    yield from _arc(config)
    yield from _interlink(config)
    yield from _exports(config)
    yield from _xrootd(config)


def warnings(config: Config) -> Iterator[str]:
    """What is legal but unwise."""
    if config.accounts.mode == "self":
        yield "accounts.mode: 'self' runs everything as one account; for demos and single-user sites only"
    for index, issuer in enumerate(config.issuers):
        if issuer.audience_optional:
            yield f"issuer[{index}].audience_optional: tokens meant for other services will be accepted"
        if "https://wlcg.cern.ch/jwt/v1/any" in issuer.audience:
            yield f"issuer[{index}].audience: the any-audience lets any service that saw a token use it here"
    if config.log.audit_file is None:
        yield "log.audit_file: not set; audit lines go only to the general log"
    yield from _exports_of_nobody(config)
    if config.jobs is not None:
        yield from cluster_warnings(config.jobs.clusters)
    if config.egress is not None:
        yield from egress_warnings(config.egress)


def _edges(config: Config) -> Iterator[str]:
    """SQLite is one machine's: two edges on it would each run the jobs they know, and no others."""
    edges = sorted(set(config.site.edges))
    if len(edges) > 1 and not config.runtime.database:
        yield f"runtime.database: {len(edges)} edges ({', '.join(edges)}) share state: name their PostgreSQL"


def _issuers(config: Config) -> Iterator[str]:
    seen: dict[str, int] = {}
    for index, issuer in enumerate(config.issuers):
        if issuer.url in seen:
            yield f"issuer[{index}].url: the same as issuer[{seen[issuer.url]}].url"
        seen.setdefault(issuer.url, index)
        if issuer.claims_from == "introspection" and not (
            issuer.introspection_client and issuer.introspection_secret_file
        ):
            yield f"issuer[{index}].introspection_client: needed, with introspection_secret_file"


def _mappings(config: Config) -> Iterator[str]:
    urls = {issuer.url for issuer in config.issuers}
    for index, rule in enumerate(config.mappings):
        if rule.issuer not in urls:
            yield f"mapping[{index}].issuer: no [[issuer]] has url {rule.issuer!r}"
        if rule.account == "root" and config.accounts.mode == "accountd":
            yield f"mapping[{index}].account: root: nobody from outside becomes root"
        if rule.queue and config.jobs and rule.queue not in {q.name for q in config.jobs.queues}:
            yield f"mapping[{index}].queue: no [[jobs.queue]] is named {rule.queue!r}"


def _accounts(config: Config) -> Iterator[str]:
    mapped = {rule.account for rule in config.mappings}
    if config.accounts.mode == "self" and len(mapped) > 1:
        yield f"accounts.mode: 'self' serves one account, the mappings name {len(mapped)}: {', '.join(sorted(mapped))}"
    for account in sorted(mapped - set(config.accounts.allowed)) if config.accounts.allowed else ():
        yield f"accounts.allowed: lacks {account!r}, which a mapping names"


def _vos(config: Config) -> set[str]:
    """Those that somebody's token can be of."""
    return {issuer.vo for issuer in config.issuers} | {rule.vo for rule in config.mappings if rule.vo}


def _vos_of_accounts(config: Config) -> dict[str, set[str]]:
    vo_of = {issuer.url: issuer.vo for issuer in config.issuers}
    found: dict[str, set[str]] = {}
    for rule in config.mappings:
        found.setdefault(rule.account, set()).add(rule.vo or vo_of.get(rule.issuer, ""))
    return found


def _queues(config: Config) -> Iterator[str]:
    for account, vos in sorted(_vos_of_accounts(config).items()):
        if len(vos) > 1:  # DESIGN §1: isolation ends at the account
            yield f"mapping: account {account!r} serves several VOs ({', '.join(sorted(vos))}); give each its own"
    if config.jobs is None:
        return
    yield from cluster_problems(config.jobs.clusters)
    yield from _batch_systems(config.jobs)
    seen: dict[str, int] = {}
    for index, queue in enumerate(config.jobs.queues):
        if queue.name in seen:
            yield f"jobs.queue[{index}].name: the same as jobs.queue[{seen[queue.name]}].name"
        seen.setdefault(queue.name, index)
        if queue.default_walltime_s > queue.max_walltime_s:
            yield f"jobs.queue[{index}].default_walltime_s: above max_walltime_s"


def _batch_systems(jobs: Jobs) -> Iterator[str]:
    """Each is one of jobs.cluster, or a driver that is installed."""
    known = {cluster.name for cluster in jobs.clusters}
    known |= {point.name for point in entry_points(group="edged.batch")}
    named = {"jobs.batch": jobs.batch}
    named |= {f"jobs.queue[{n}].batch": queue.batch for n, queue in enumerate(jobs.queues) if queue.batch}
    for path, batch in named.items():
        if batch not in known:
            yield f"{path}: no driver and no [[jobs.cluster]] is named {batch!r}; there are {', '.join(sorted(known))}"


def _arc(config: Config) -> Iterator[str]:
    """X.509 subjects: the door may only claim accounts that root-owned configuration lists for it."""
    if config.jobs is None or config.jobs.arc is None or not config.jobs.arc.subjects:
        return
    claimed = {
        account for one in config.identity.assertions if one.service == "jobs" for account in one.accounts
    }
    for subject, account in config.jobs.arc.subjects.items():
        if account not in claimed:
            yield (
                f"jobs.arc.subjects.{subject!r}: no [[identity.assertions]] with service = 'jobs' has {account!r}"
            )
    if config.tls.ca_directory is None:
        yield "tls.ca_directory: needed for the X.509 subjects of jobs.arc.subjects"


def _interlink(config: Config) -> Iterator[str]:
    """Accounts the interLink door claims by itself must be listed for it."""
    if config.jobs is None or config.jobs.interlink is None:
        return
    door = config.jobs.interlink
    claimed = {
        account for one in config.identity.assertions if one.service == "jobs" for account in one.accounts
    }
    wanted = {f"rule[{n}].account": rule.account for n, rule in enumerate(door.rules) if rule.account}
    wanted |= {f"subjects.{subject!r}": account for subject, account in door.subjects.items()}
    if door.plugin is not None:
        wanted["plugin.account"] = door.plugin.account
    for where, account in wanted.items():
        if account not in claimed:
            yield f"jobs.interlink.{where}: no [[identity.assertions]] with service = 'jobs' has {account!r}"
    if door.subjects and not (door.client_ca_file and door.listen):
        yield "jobs.interlink.subjects: needs client_ca_file, and listeners of its own"
    if door.runtime.kind != "none" and not door.runtime.images:
        yield "jobs.interlink.runtime.images: empty: no pod could run; list beginnings of allowed images"


def _exports(config: Config) -> Iterator[str]:
    if config.storage is None:
        return
    seen: dict[str, int] = {}
    for index, export in enumerate(config.storage.exports):
        if export.prefix in seen:
            yield f"storage.export[{index}].prefix: the same as storage.export[{seen[export.prefix]}].prefix"
        seen.setdefault(export.prefix, index)


def _exports_of_nobody(config: Config) -> Iterator[str]:
    vos = _vos(config)
    for index, export in enumerate(config.storage.exports) if config.storage else ():
        if export.vo not in vos:
            yield f"storage.export[{index}].vo: no issuer or mapping is of VO {export.vo!r}: nobody reaches it"


def _xrootd(config: Config) -> Iterator[str]:
    if config.storage is None or config.storage.xrootd is None:
        return
    settings = config.storage.xrootd
    labels = {export.label for export in config.storage.exports}
    for name in settings.exports:
        if name not in labels:
            yield f"storage.xrootd.exports: no [[storage.export]] is named {name!r}"
    if settings.proxy is not None and config.egress is None:
        yield "storage.xrootd.proxy: needs [egress], whose rules say where it may go"
    single = [settings.port, settings.cmsd_port, *([settings.proxy.port] if settings.proxy else [])]
    if len(set(single)) != len(single):
        yield "storage.xrootd.port: port, cmsd_port and proxy.port must differ"
    count = len(config.storage.exports)
    if count > 1 and any(settings.data_port <= port < settings.data_port + count for port in single):
        yield f"storage.xrootd.data_port: the {count} ports from there on must differ from the others"
    if config.tls.certificate is None:
        yield "tls.certificate: needed for [storage.xrootd], whose tokens travel in TLS"
