"""The plan of this machine: configuration and what is installed."""

from __future__ import annotations

import socket

from edged.config import Config
from edged.errors import ConfigError, Unavailable
from services.storage.xrootd import forwarding, installation
from services.storage.xrootd.installation import Installation
from services.storage.xrootd.plan import Plan, plan
from services.storage.xrootd.servers import own_name

RELOAD = "reload"  # touched by the front at SIGHUP: the keeper reads the configuration again
BUILD = "edged xrootd build"


def make(config: Config) -> tuple[Plan, Installation]:
    """Raises ConfigError without the section, Unavailable when what it needs is not installed."""
    if config.storage is None or config.storage.xrootd is None:
        raise ConfigError(["storage.xrootd: no such section"])
    installed = installation.look(config.storage.xrootd)
    wanted = [installed.gate]
    if config.storage.xrootd.proxy is not None:
        wanted.append(forwarding.library(installed.gate))
    if missing := [str(file) for file in wanted if not file.exists()]:
        raise Unavailable(
            f"the exports stay closed without edged's gate, since this server's own rules are weaker: run `{BUILD}`",
            detail=" ".join(missing),
        )
    found = of(config, multiuser=installed.multiuser is not None)
    return found, installed


def of(config: Config, *, multiuser: bool) -> Plan:
    """The plan, whatever is installed."""
    found = plan(config, host=config.site.host or socket.getfqdn(), own=own_name(), multiuser=multiuser)
    if found is None:
        raise ConfigError(["storage.xrootd: no such section"])
    return found
