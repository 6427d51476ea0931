"""Wiring: the signer, the fetcher of issuers' keys, and the public API. Each can be a process of its own."""

from __future__ import annotations

import socket

from edged.config import Config
from edged.http.api import Api
from edged.http.server import HttpServer
from edged.identity import feed, wire
from edged.identity.client import IdentityClient
from edged.lifecycle import Service
from edged.services import Context
from edged.tls import ServerTls
from services.identity import certificates, issuers_wire, ledger, sealing, ssh_api
from services.identity.api import operations
from services.identity.authority import Authority
from services.identity.callers import API
from services.identity.certificates import Certificates
from services.identity.issuers import Fetcher
from services.identity.keyring import Keyring
from services.identity.ledger import Ledger
from services.identity.signer import Signer


def signer(config: Config, context: Context) -> list[Service]:
    """``identity``: holds the key, meets no network."""
    key = sealing.grant_key(config.runtime.state / "identity")
    ledger.create(config)
    book = Ledger(ledger.store(config))
    keyring = Keyring(config)
    certificates.create(config)
    issued = Certificates(certificates.store(config))
    ssh = sealing.ssh_key(config.runtime.state / "identity", config.site.name)
    return [
        book,
        keyring,
        issued,
        Signer(
            config,
            key,
            keyring,
            book,
            Authority(config, ssh, key.public_key(), issued, ban_on=book.ban_on),
            inherited=_inherited(context, wire.SOCKET),
            inherited_feed=_inherited(context, feed.SOCKET),
        ),
    ]


def issuers(config: Config, context: Context) -> list[Service]:
    """``issuers``: fetches keys over the network, holds none of ours."""
    return [Fetcher(config, _inherited(context, issuers_wire.SOCKET))]


def api(config: Config, context: Context) -> list[Service]:
    """``identity-api``: whoami and bans over https; absent without [identity] listen."""
    inherited = context.inherited.get("identity-api")
    if not config.identity.listen and not inherited:
        return []
    client = IdentityClient(config, API)
    admins = ["/" + group.strip("/") for group in config.identity.admins]  # as principals write groups
    front = Api(
        "identity", (*operations(config, client), *ssh_api.operations(config, client)), client, admins=admins
    )
    server = HttpServer(
        "identity-api",
        config.identity,
        front.handle,
        tls=ServerTls(config.tls) if config.identity.tls else None,
        inherited=inherited,
        stop_deadline_s=config.runtime.stop_deadline_s,
    )
    return [client, server]


def _inherited(context: Context, name: str) -> socket.socket | None:
    """The listener of that name from systemd: a dup, since who serves closes it."""
    found = context.inherited.get(name.removesuffix(".sock"))
    return found[0].dup() if found else None
