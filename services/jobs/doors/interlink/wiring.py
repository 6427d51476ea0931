"""The interLink door's listeners: on that of [jobs], on ones of its own, and for the API server beside us."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from edged.config import Config
from edged.config.doors import InterLink, Plugin
from edged.config.site import Front, HttpLimits
from edged.errors import ConfigError
from edged.http.server import Handler, HttpServer
from edged.identity.client import Verdicts
from edged.lifecycle import Service
from edged.services import Context
from edged.tls import ServerTls
from services.jobs.doors.interlink.callers import PluginCallers, TokenCallers
from services.jobs.doors.interlink.door import PATHS, Door, Listener
from services.jobs.engine import Engine

NAME = "interlink"
PLUGIN = "interlink-plugin"
PLUGIN_IDLE_S = 150.0  # an API server keeps its own connections for 120 s and uses them again
OWN_IDLE_S = 10.0


@dataclass(slots=True)
class Wired:
    """``mounts`` for the listener of [jobs], ``services`` to run after the engine."""

    mounts: dict[str, Handler] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)


def wire(config: Config, context: Context, engine: Engine, identity: Verdicts) -> Wired:
    """Nothing when [jobs.interlink] is absent."""
    if config.jobs is None or config.jobs.interlink is None:
        return Wired()
    settings = config.jobs.interlink
    door = Door(settings, engine, identity)
    found = Wired(services=[door])
    if settings.listen:
        found.services.append(_own(config, settings, context, door, identity))
    else:
        handle = Listener(door, TokenCallers(identity), close=config.jobs.tls).handle
        found.mounts = dict.fromkeys(PATHS, handle)
    if settings.plugin is not None:
        found.services.append(_plugin(config, settings.plugin, context, door, identity))
    return found


def _own(config: Config, settings: InterLink, context: Context, door: Door, identity: Verdicts) -> HttpServer:
    """What virtual kubelets call; with ``client_ca_file`` only those with a certificate of that CA."""
    front = _front(config, settings.listen, OWN_IDLE_S, tls=True)
    return HttpServer(
        NAME,
        front,
        Listener(door, TokenCallers(identity, settings.subjects), close=front.tls).handle,
        tls=_tls(config, settings) if front.tls else None,
        inherited=context.inherited.get(NAME),
        stop_deadline_s=config.runtime.stop_deadline_s,
    )


def _front(config: Config, listen: tuple[str, ...], idle_s: float, *, tls: bool) -> Front:
    assert config.jobs is not None
    limits: HttpLimits = config.jobs.limits.model_copy(update={"idle_s": idle_s})
    return Front(listen=listen, tls=tls and config.jobs.tls, limits=limits)


def _tls(config: Config, settings: InterLink) -> ServerTls:
    """Grid CAs are left out: they would vouch for clients here, too."""
    tls = ServerTls(config.tls.model_copy(update={"ca_directory": None}))
    if settings.client_ca_file is not None:
        try:
            tls.context.load_verify_locations(cafile=str(settings.client_ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([f"jobs.interlink.client_ca_file: {error}"]) from None
        tls.context.verify_mode = ssl.CERT_REQUIRED
    # a virtual kubelet's connections share no session: tickets would only cost (tests/bench/interlink_status.py)
    tls.context.num_tickets = 0
    return tls


def _plugin(config: Config, settings: Plugin, context: Context, door: Door, identity: Verdicts) -> HttpServer:
    return HttpServer(
        PLUGIN,
        _front(config, settings.listen, PLUGIN_IDLE_S, tls=False),
        Listener(door, PluginCallers(identity, settings), close=False).handle,
        tls=None,
        inherited=context.inherited.get(PLUGIN),
        stop_deadline_s=config.runtime.stop_deadline_s,
    )
