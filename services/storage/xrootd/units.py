"""The units of the servers, for `edged units` (entry point group ``edged.units``)."""

from __future__ import annotations

from edged.config import Config
from edged.errors import EdgeError
from services.storage.xrootd import planning


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
        roots = [f"ReadWritePaths=-{export.root}" for export in one.exports]
        for program in one.programs:
            found[f"edged-{program}@{one.name}.service"] = [*roots, *_credentials(config)]
    return found


def _credentials(config: Config) -> list[str]:
    if config.tls.certificate is None or config.tls.key is None:
        return []
    files = {"tls.crt": config.tls.certificate, "tls.key": config.tls.key}
    return ["LoadCredential=", *(f"LoadCredential={name}:{file}" for name, file in files.items())]
