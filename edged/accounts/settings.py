"""What accountd needs of the configuration: few plain values that fit one message."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edged.accounts.messages import ExportRoot
from edged.errors import ConfigError
from edged.identity import feed

if TYPE_CHECKING:
    from edged.config import Config

PUBLIC_KEY = Path("identity/grant.pub")  # below [runtime] state; written by the signer
SERVICES = ("identity", "jobs", "storage", "cache", "egress", "portal")
ANY_SERVICE = "*"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


class ExportFor(msgspec.Struct, frozen=True):
    """An export and the accounts that may use it."""

    root: ExportRoot
    accounts: frozenset[str]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The root-owned facts. ``peers``: uid → services it may present grants of.

    ``own_account`` is set in self mode: the caller's own account, the only one served.
    """

    socket: str
    public_key: str
    feed: str
    peers: dict[int, frozenset[str]]
    allowed: frozenset[str]
    minimum_uid: int
    exports: tuple[ExportFor, ...]
    sessions: str
    locks: str
    file_threads: int
    batch_threads: int
    idle_s: float
    own_account: str | None = None
    environment: dict[str, str] = {}  # added to that of every worker, e.g. SLURM_CONF


def settings_of(config: Config, *, one_process: bool) -> Settings:
    """From the whole configuration. ``one_process``: `edged run`, whose single user speaks for all services.

    Raises ConfigError when this process cannot serve what is configured.
    """
    own = _own_account(config) if config.accounts.mode == "self" else None
    allowed = frozenset(config.accounts.allowed or (rule.account for rule in config.mappings))
    if config.accounts.poll_account:
        allowed |= {config.accounts.poll_account}
    return Settings(
        socket=str(config.runtime.run / config.accounts.socket_name),
        public_key=str(config.runtime.state / PUBLIC_KEY),
        feed=str(config.runtime.run / feed.SOCKET),
        peers=_one_user(config) if one_process or own else _service_users(),
        allowed=allowed,
        minimum_uid=config.accounts.minimum_uid,
        exports=_exports(config),
        sessions=str(config.jobs.sessions) if config.jobs else "",
        locks=str(config.runtime.run / "locks"),
        file_threads=config.accounts.file_threads,
        batch_threads=(config.jobs.submit_parallel if config.jobs else 1)
        + 4,  # polls never wait for submissions
        idle_s=config.accounts.idle_s,
        own_account=own,
        environment=_environment(config),
    )


def _environment(config: Config) -> dict[str, str]:
    """Where the batch system's clients are and which configuration they read."""
    if config.jobs is None:
        return {}
    found = {"SLURM_CONF": str(config.jobs.slurm_conf)} if config.jobs.slurm_conf else {}
    if str(config.jobs.slurm_bin) not in PATH.split(":"):
        found["PATH"] = f"{config.jobs.slurm_bin}:{PATH}"
    return found


def own_name() -> str:
    """The name of the account that runs this process; ``uid<n>`` when the system knows none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid{os.getuid()}"


def _own_account(config: Config) -> str:
    name = own_name()
    others = {rule.account for rule in config.mappings} | set(config.accounts.allowed)
    if refused := ", ".join(sorted(others - {name})):
        raise ConfigError([f"accounts.mode: 'self' serves only {name!r} (the caller), not {refused}"])
    return name


def _one_user(config: Config) -> dict[int, frozenset[str]]:
    """Whoever starts us, and the user that `edged run` becomes."""
    peers = {os.getuid(): frozenset({ANY_SERVICE})}
    if os.getuid() == 0:
        with contextlib.suppress(KeyError):  # start.drop_root says so
            peers[pwd.getpwnam(config.runtime.user).pw_uid] = frozenset({ANY_SERVICE})
    return peers


def _service_users() -> dict[int, frozenset[str]]:
    """Under systemd each service is its own user, ``edged-<service>``."""
    peers: dict[int, frozenset[str]] = {}
    for service in SERVICES:
        try:
            uid = pwd.getpwnam(f"edged-{service}").pw_uid
        except KeyError:
            continue
        peers[uid] = peers.get(uid, frozenset()) | {service}
    return peers


def _exports(config: Config) -> tuple[ExportFor, ...]:
    if config.storage is None:
        return ()
    vo_of = {issuer.url: issuer.vo for issuer in config.issuers}
    of_vo: dict[str, set[str]] = {}
    for rule in config.mappings:
        of_vo.setdefault(rule.vo or vo_of.get(rule.issuer, ""), set()).add(rule.account)
    return tuple(
        ExportFor(
            ExportRoot(export.label, export.prefix, str(export.root)),
            frozenset(export.accounts or of_vo.get(export.vo, ())),
        )
        for export in config.storage.exports
    )
