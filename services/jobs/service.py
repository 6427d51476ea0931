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
from edged.tls import ServerTls
from services.jobs import journal
from services.jobs.batch.protocol import ENTRY_POINTS, BatchSystem, Driver
from services.jobs.doors.arc.door import ArcDoor
from services.jobs.doors.interlink import wiring as interlink
from services.jobs.doors.native import NativeDoor
from services.jobs.engine import Engine
from services.jobs.payload import Payloads
from services.jobs.sessions import LocalSessions

NAME = ServiceName("jobs")


def build(config: Config, context: Context) -> list[Service]:
    """The services of [jobs]; none when it is not configured."""
    if config.jobs is None:
        return []
    identity = IdentityClient(config, NAME)
    accounts = AccountClient.of(config)
    engine = Engine(
        config,
        journal.open_store(config),
        identity,
        sessions=LocalSessions(accounts.files),
        batches=batch_systems(config.jobs, accounts.batch),
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
    return [identity, accounts, engine, *pods.services, server]


def _handler(
    config: Config, engine: Engine, identity: IdentityClient, api: Api, mounts: Mapping[str, Handler]
) -> Handler:
    """The doors on the one listener, by path."""
    doors = dict(mounts)
    if config.jobs is not None and config.jobs.arc is not None:
        doors["/arex"] = ArcDoor(config, engine, identity).handle
    return Mounts({**doors, "/": api.handle}).handle if doors else api.handle


def batch_systems(jobs: Jobs, accounts: Batch) -> Mapping[str, BatchSystem]:
    """The batch systems the queues name. Raises ConfigError for a driver that is not installed."""
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    found: dict[str, BatchSystem] = {}
    for name in {jobs.batch, *(queue.batch for queue in jobs.queues if queue.batch)}:
        if name not in points:
            raise ConfigError([f"jobs.batch: no driver {name!r}; installed are {', '.join(sorted(points))}"])
        driver: Driver = points[name].load()
        found[name] = driver.create(jobs, accounts)
    return found
