"""A unix socket's path has room for few bytes: said here, of the sockets that this configuration makes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edged.config.load import Config

PATH_BYTES = 107  # sun_path without its final zero byte, unix(7)
SHARED = ("storage", "cache")  # services that can be several processes


def socket_problems(config: Config) -> Iterator[str]:
    """For each directory that is too long its longest socket, and how long the directory may be."""
    longest: dict[str, tuple[Path, str]] = {}
    for key, directory, name in sockets(config):
        if len(name) > len(longest.get(key, (directory, ""))[1]):
            longest[key] = directory, name
    for key, (directory, name) in longest.items():
        room = PATH_BYTES - len(f"/{name}")
        if (length := len(os.fsencode(directory))) > room:
            yield f"{key}: {length} bytes: at most {room}, or the path of the socket {name} in it is too long for Linux"


def sockets(config: Config) -> Iterator[tuple[str, Path, str]]:
    """Of each socket that ``edged run`` makes: the setting that says where, the directory, the path below it."""
    run = config.runtime.run
    for name in ("identity.sock", "identity-feed.sock", "issuers.sock"):
        yield "runtime.run", run, name
    if config.accounts.mode == "accountd":
        yield "runtime.run", run, str(config.accounts.socket_name)
    for service in SHARED:
        section = getattr(config, service)
        if section is not None and section.workers > 1:
            yield "runtime.run", run, f"workers/{service}-{section.workers - 1}.sock"
    if config.storage is not None and config.storage.xrootd is not None:
        yield "runtime.run", run, "xrootd/gate.sock"
    if config.cache is not None:
        yield from _of_cache(run, config.cache.admin, f"{config.cache.workers - 1}.sock")
    if config.egress is not None and config.egress.nat is not None:
        yield "runtime.run", run, "netd.sock"


def _of_cache(run: Path, admin: Path | None, name: str) -> Iterator[tuple[str, Path, str]]:
    if admin is None:
        yield "runtime.run", run, f"cache/{name}"
    else:
        yield "cache.admin", admin, name
