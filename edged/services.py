"""Finding the services of this installation and building those the configuration asks for.

A service is an entry point of group ``edged.services`` that resolves to
``build(config, context) -> list[Service]``; it returns an empty list when its section is absent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from edged.config import Config
from edged.errors import ConfigError
from edged.lifecycle import Service

if TYPE_CHECKING:  # a process without a database does not load what databases need
    from edged.state import Store

# Who is asked first is started first: identity before those who need verdicts.
ORDER = ("identity", "issuers", "identity-api", "jobs", "storage", "xrootd", "cache", "egress", "portal")


@dataclass(frozen=True, slots=True)
class Context:
    """What a service gets besides the configuration.

    ``inherited``: listeners by name, from systemd or a parent, to be used instead of binding.
    ``alone``: this process runs one service, as under systemd; False in ``edged run`` with all of them.
    ``worker``: index among the processes sharing one listener, 0 when there is one.
    """

    inherited: Mapping[str, list[socket.socket]] = field(default_factory=dict)
    alone: bool = False
    worker: int = 0


Build = Callable[[Config, Context], list[Service]]


def known(config: Config, only: tuple[str, ...] = ()) -> dict[str, Build]:
    """Service name → its build function, in start order: of those named, else of those configured.

    What is left out is not even imported: its memory and its time to start are for those who use it.
    Raises ConfigError for an unknown name.
    """
    found = {point.name: point for point in entry_points(group="edged.services")}
    names = sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    if unknown := [name for name in only if name not in found]:
        raise ConfigError([f"{name}: no such service; there are {', '.join(names)}" for name in unknown])
    wanted = only or tuple(name for name in names if _has_section(config, name))
    return {name: found[name].load() for name in names if name in wanted}


def _has_section(config: Config, name: str) -> bool:
    """False when there could be a section of this name and there is none."""
    return getattr(config, name, config) is not None


def build(config: Config, context: Context, only: tuple[str, ...] = ()) -> list[Service]:
    """The services of this process. Raises ConfigError for an unknown name in ``only``."""
    return [service for make in known(config, only).values() for service in make(config, context)]


def stores(config: Config) -> list[Store]:
    """The databases of the configured services (entry point group ``edged.stores``)."""
    found = [point.load()(config) for point in entry_points(group="edged.stores")]
    return [store for store in found if store is not None]
