"""Wiring of the jobs service: the engine, its batch systems, its doors, one listener."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from edged.accounts.api import Batch
from edged.accounts.client import AccountClient
from edged.config import Config
from edged.config.jobs import Jobs
from edged.errors import ConfigError
from edged.http.api import Api, Mounts
from edged.http.server import Handler, HttpServer
from edged.identity.client import IdentityClient
from edged.identity.words import ServiceName
from edged.lifecycle import Service
from edged.services import Context
from edged.sshca import Credentials
from edged.tls import ServerTls
from services.jobs import journal
from services.jobs.batch.protocol import ENTRY_POINTS, Driver, Reached, Reaching, Surroundings
from services.jobs.doors.arc.door import ArcDoor
from services.jobs.doors.interlink import wiring as interlink
from services.jobs.doors.native import NativeDoor
from services.jobs.engine import Engine
from services.jobs.payload import Payloads
from services.jobs.sessions import Sessions, WorkerFiles

NAME = ServiceName("jobs")


def build(config: Config, context: Context) -> list[Service]:
    """The services of [jobs]; none when it is not configured."""
    if config.jobs is None:
        return []
    identity = IdentityClient(config, NAME)
    accounts = AccountClient.of(config)
    reached = batch_systems(config.jobs, accounts.batch, identity)
    engine = Engine(
        config,
        journal.open_store(config),
        identity,
        sessions=Sessions(WorkerFiles(accounts.files)),
        sessions_of={name: one.sessions for name, one in reached.items() if one.sessions is not None},
        batches={name: one.system for name, one in reached.items()},
        files_of=Payloads(config, config.jobs, identity).files,
    )
    door = NativeDoor(config, engine)
    api = Api("edged jobs", door.operations(), identity, admins=config.identity.admin_groups)
    pods = interlink.wire(config, context, engine, identity)
    server = HttpServer(
        NAME,
        config.jobs,
        _handler(config, engine, identity, api, pods.mounts),
        tls=ServerTls(config.tls) if config.jobs.tls else None,
        inherited=context.inherited.get(NAME),
        stop_deadline_s=config.runtime.stop_deadline_s,
    )
    elsewhere = [one.service for one in reached.values() if one.service is not None]
    return [identity, accounts, *elsewhere, engine, *pods.services, server]


def _handler(
    config: Config, engine: Engine, identity: IdentityClient, api: Api, mounts: Mapping[str, Handler]
) -> Handler:
    """The doors on the one listener, by path."""
    doors = dict(mounts)
    if config.jobs is not None and config.jobs.arc is not None:
        doors["/arex"] = ArcDoor(config, engine, identity).handle
    return Mounts({**doors, "/": api.handle}).handle if doors else api.handle


def batch_systems(jobs: Jobs, accounts: Batch, credentials: Credentials) -> Mapping[str, Reached]:
    """The batch systems the queues name. Raises ConfigError for a driver that is not installed."""
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    clusters = {cluster.name: cluster for cluster in jobs.clusters}
    found: dict[str, Reached] = {}

    def driver(kind: str) -> Driver | Reaching:
        if kind not in points:
            raise ConfigError([f"jobs.batch: no driver {kind!r}; installed are {', '.join(sorted(points))}"])
        try:
            loaded: Driver | Reaching = points[kind].load()
        except Exception as error:  # a site's own may raise anything while it is imported
            raise ConfigError([f"jobs.batch: driver {kind!r} cannot be loaded: {error!r}"]) from error
        return loaded

    # those that lend their sessions to others come first
    for cluster in sorted(clusters.values(), key=lambda one: getattr(one, "sessions_by", None) is not None):
        loaded = driver(cluster.kind)
        if not isinstance(loaded, Reaching):
            raise ConfigError(
                [f"jobs.cluster {cluster.name}.kind: {cluster.kind!r} needs no [[jobs.cluster]]"]
            )
        found[cluster.name] = loaded.reach(Surroundings(jobs, cluster, accounts, credentials, dict(found)))
    for name in {jobs.batch, *(queue.batch for queue in jobs.queues if queue.batch)} - set(clusters):
        loaded = driver(name)
        if isinstance(loaded, Reaching):
            raise ConfigError([f"jobs.batch: {name!r} needs a [[jobs.cluster]] of that kind; name that one"])
        found[name] = Reached(loaded.create(jobs, accounts))
    return found
