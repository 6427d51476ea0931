"""Egress: what it is made of."""

from __future__ import annotations

from edged.config import Config
from edged.config.site import Front
from edged.egress.names import Names
from edged.http.api import Api
from edged.http.server import HttpServer
from edged.identity.client import IdentityClient
from edged.identity.words import ServiceName
from edged.lifecycle import Service
from edged.services import Context
from edged.state import Store
from edged.tls import ServerTls
from services.egress.accounts import Accounts
from services.egress.api import Administration
from services.egress.bookkeeping import Bookkeeper
from services.egress.gate import Gate
from services.egress.ledger import Ledger, store_of
from services.egress.natfeed import NatFeed
from services.egress.netd.client import NetdClient
from services.egress.netd.messages import SOCKET


def build(config: Config, context: Context) -> list[Service]:
    """Identity's client, the store, the bookkeeper and the gate; nothing without an [egress] section."""
    if config.egress is None:
        return []
    settings = config.egress
    identity = IdentityClient(config, ServiceName("egress"))
    database = store_of(config)
    names = Names(settings.resolvers, timeout_s=settings.limits.resolve_s, lookups=settings.limits.lookups)
    accounts = Accounts()
    books = Bookkeeper(accounts, Ledger(database), period_s=settings.accounts_s, keep_s=settings.keep_s)
    gate = Gate(config, identity, accounts, names, context.inherited)
    parts: list[Service] = [identity, database, books, gate]
    if settings.nat is not None:
        netd = NetdClient(config.runtime.run / SOCKET)
        parts.append(NatFeed(settings.nat, gate, names, accounts, netd))
    if settings.api is not None:
        parts.append(
            _api(
                config,
                context,
                settings.api,
                Api(
                    "edged egress",
                    Administration(gate, Ledger(database)).operations(),
                    identity,
                    admins=config.identity.admin_groups,
                ),
            )
        )
    return parts


def _api(config: Config, context: Context, front: Front, api: Api) -> HttpServer:
    """The administrators' HTTP side, on a listener of its own: nodes have no business there."""
    return HttpServer(
        "egress-api",
        front,
        api.handle,
        tls=ServerTls(config.tls) if front.tls else None,
        inherited=context.inherited.get("egress-api"),
        stop_deadline_s=config.runtime.stop_deadline_s,
    )


def store(config: Config) -> Store | None:
    """The database `edged state migrate` brings up to date."""
    return store_of(config) if config.egress is not None else None
