"""``edged run``: from a configuration to running processes.

Without a service name every configured service runs in this process. Started as root it first
starts accountd, which keeps the privilege, and becomes ``runtime.user`` before it listens.
"""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import uvloop

from edged import config as configuration
from edged import lifecycle, logs, openfiles, services, systemd, workers
from edged.accounts.start import Privileged, start_privileged
from edged.config import Config
from edged.config.site import Front
from edged.errors import ConfigError
from edged.lifecycle import Health, Service
from edged.observe import Observer

log = logs.get_logger("edged.run")

Inherited = dict[str, list[socket.socket]]


def main(config_file: Path, only: tuple[str, ...] = (), on_ready: Callable[[], None] | None = None) -> int:
    """Run until told to stop; returns the exit status: 0 stopped, 1 a part died, 2 configuration."""
    try:
        config = configuration.load(config_file)
    except ConfigError as error:
        systemd.notify("", status=f"{error}; see `edged check`")
        raise
    logs.setup(level=config.log.level, form=config.log.format, audit_file=config.log.audit_file)
    index, passed = workers.from_environment()
    inherited = {**systemd.inherited_sockets(), **passed}
    openfiles.allow()
    services.known(
        config, only
    )  # imported before root is given up: the interpreter may be readable by root only
    beside = start_privileged(config, config_file) if not only else Privileged()
    status = 0
    try:
        uvloop.run(serve(config, config_file, only, inherited=inherited, worker=index, on_ready=on_ready))
    except* ConfigError as group:
        status = 2
        problems = _problems(group)
        systemd.notify("", status="; ".join(problems))
        for problem in problems:
            print(f"edged: {problem}", file=sys.stderr)  # noqa: T201 - for the person at the terminal
    except* Exception as group:  # a part died: say which, and let the service manager start us again
        status = 1
        log.exception("stopped by an error", exc_info=group)
    finally:
        beside.stop()
    return status


def _problems(group: BaseExceptionGroup[ConfigError]) -> list[str]:
    found: list[str] = []
    for error in group.exceptions:
        found += _problems(error) if isinstance(error, BaseExceptionGroup) else error.problems
    return found


async def serve(
    config: Config,
    config_file: Path,
    only: tuple[str, ...] = (),
    *,
    inherited: Inherited | None = None,
    worker: int | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Build the services of this process and run them."""
    health = Health()
    parts, groups = _parts(config, config_file, only, inherited or {}, worker)
    observer = Observer(
        _observe_address(config, only, worker),
        health,
        inherited=(inherited or {}).get("observe") if worker is None else None,
        others=[group.pages for group in groups],
    )

    def ready() -> None:
        # modules and settings stay for good: a full collection, in which nothing else runs, need not look through them
        gc.freeze()
        if worker is None:
            _tell_addresses(config, [*parts, observer.server])
        if on_ready is not None:
            on_ready()

    await lifecycle.run(
        [*parts, observer],
        health=health,
        load_config=lambda: configuration.load(config_file),
        on_ready=ready,
    )


def _tell_addresses(config: Config, parts: Sequence[Service]) -> None:
    """Write where each listener is to ``run/listening.json``: port 0 in a configuration means any.

    A unit that may not write there has a directory of its own.
    """
    found = {part.name: part.addresses for part in parts if isinstance(part, lifecycle.Listening)}
    target = (systemd.runtime_directory() or config.runtime.run) / "listening.json"
    before = msgspec.json.decode(target.read_bytes()) if target.exists() else {}
    partial = target.with_suffix(".new")
    partial.write_bytes(msgspec.json.encode({**before, **found}))
    partial.replace(target)


def _parts(
    config: Config, config_file: Path, only: tuple[str, ...], inherited: Inherited, worker: int | None
) -> tuple[list[Service], list[workers.WorkerGroup]]:
    """The services that run here, and the groups of processes that run beside."""
    names = only or tuple(services.known(config))
    if worker is not None:
        context = services.Context(inherited=inherited, alone=True, worker=worker)
        return services.build(config, context, only), []
    shared = [name for name in names if _front(config, name).workers > 1]
    groups = [
        workers.WorkerGroup(
            name, _front(config, name), config.runtime, config_file, inherited=inherited.get(name)
        )
        for name in shared
    ]
    here = tuple(name for name in names if name not in shared)
    context = services.Context(inherited=inherited, alone=len(only) == 1)
    parts = services.build(config, context, here) if here else []
    return [*parts, *groups], groups


def _front(config: Config, name: str) -> Front:
    section = getattr(config, name, None)
    return section if isinstance(section, Front) else Front()


def _observe_address(config: Config, only: tuple[str, ...], worker: int | None) -> str:
    if worker is not None:
        return str(workers.observe_path(config.runtime, only[0], worker))
    if len(only) == 1 and only[0] in config.observe.services:
        return config.observe.services[only[0]]
    return config.observe.listen
