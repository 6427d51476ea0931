"""The units of the servers, for `edged units` (entry point group ``edged.units``)."""

from __future__ import annotations

from pathlib import Path

from edged.config import Config
from edged.errors import EdgeError
from services.storage.xrootd import planning
from services.storage.xrootd.plan import Instance, Role


def units(config: Config) -> dict[str, list[str]]:
    """Unit → settings of its [Service] part; empty without [storage.xrootd]."""
    if config.storage is None or config.storage.xrootd is None:
        return {}
    try:
        plan, _ = planning.make(config)
    except EdgeError:  # not installed yet: readiness tells
        plan = planning.of(config, multiuser=False)
    found = {"edged-xrootd.service": _credentials(config)}
    for one in plan.instances:
        roots = [f"ReadWritePaths=-{root}" for root in _roots(config, one)]
        for program in one.programs:
            found[f"edged-{program}@{one.name}.service"] = [*roots, *_credentials(config)]
    return found


def _roots(config: Config, one: Instance) -> list[Path]:
    """What the instance writes besides its own directory; a redirector nothing."""
    if one.role is Role.MANAGER:
        return []
    settings = config.storage.xrootd if config.storage else None
    if one.role is Role.PROXY and settings is not None and settings.proxy is not None:
        return [settings.proxy.cache]
    return [export.root for export in one.exports]


def _credentials(config: Config) -> list[str]:
    if config.tls.certificate is None or config.tls.key is None:
        return []
    files = {"tls.crt": config.tls.certificate, "tls.key": config.tls.key}
    return ["LoadCredential=", *(f"LoadCredential={name}:{file}" for name, file in files.items())]
