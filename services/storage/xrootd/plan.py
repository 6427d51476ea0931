"""From the configuration to the servers that show it. Pure.

Where one server suffices it is what clients talk to. Several data servers stand behind a redirector,
which routes by path: so each export then has one account. The multiuser plugin serves all accounts
in one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edged.config import Config
from edged.config.identity import Issuer
from edged.config.storage import Export
from edged.config.xrootd import Xrootd
from edged.errors import ConfigError

DIRECTORY = "xrootd"  # below [runtime] run; the servers' own beside it, /run/edged-xrootd
MANAGER = "redirector"
MULTIUSER = "multiuser"
PROXY = "proxy"


class Role(StrEnum):
    """What a server is to its clients."""

    ALONE = "alone"  # the whole view
    DATA = "data"  # behind the redirector
    MANAGER = "manager"
    MULTIUSER = "multiuser"  # the whole view, becoming each account
    PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class Shown:
    """An export in the view. ``account`` is '' where several share it."""

    label: str
    prefix: str
    root: Path
    vo: str
    account: str
    accounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """One xrootd, with its cmsd where ``clustered``. ``account`` is whom both run as."""

    name: str
    role: Role
    account: str
    port: int
    exports: tuple[Shown, ...]
    directory: Path

    @property
    def clustered(self) -> bool:
        """Whether a cmsd runs beside."""
        return self.role in (Role.DATA, Role.MANAGER)

    @property
    def programs(self) -> tuple[str, ...]:
        """What runs, in start order."""
        return ("cmsd", "xrootd") if self.clustered else ("xrootd",)


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole view. ``refused``: export → why it is not shown. ``issuers`` by VO."""

    host: str
    settings: Xrootd
    directory: Path  # what we write: the gate's socket, keys
    servers: Path  # what the servers read: root's, since who writes it becomes the accounts
    instances: tuple[Instance, ...]
    issuers: dict[str, tuple[Issuer, ...]]
    refused: dict[str, str]
    watched: tuple[Path, ...] = ()  # certificate and key: renewed ones restart the servers

    @property
    def gate(self) -> Path:
        """The socket where servers ask for verdicts."""
        return self.directory / "gate.sock"

    @property
    def keys(self) -> Path:
        """XDG_CACHE_HOME of all servers: the issuers' keys."""
        return self.directory / "keys"

    @property
    def url(self) -> str:
        """What clients are told."""
        return f"root://{self.host}:{self.settings.port}"

    def named(self, name: str) -> Instance | None:
        """The instance of that name."""
        return next((one for one in self.instances if one.name == name), None)


def plan(config: Config, *, host: str, own: str, multiuser: bool) -> Plan | None:
    """None without [storage.xrootd]. ``own``: the account of this process. ``multiuser``: plugin installed."""
    storage = config.storage
    if storage is None or storage.xrootd is None:
        return None
    settings = storage.xrootd
    directory = config.runtime.run / DIRECTORY
    servers = config.runtime.run.with_name(f"{config.runtime.run.name}-{DIRECTORY}")
    refused: dict[str, str] = {}
    shown = tuple(_shown(config, settings, own, refused, multiuser=multiuser))
    instances = tuple(_instances(config, settings, shown, servers, own))
    if settings.proxy is not None:
        user = own if config.accounts.mode == "self" else settings.proxy.user or config.runtime.user
        proxy = Instance(PROXY, Role.PROXY, user, settings.proxy.port, (), servers / PROXY)
        instances = (*instances, proxy)
    watched = tuple(file for file in (config.tls.certificate, config.tls.key) if file is not None)
    vos = {one.vo: tuple(i for i in config.issuers if _speaks_for(config, i, one.vo)) for one in shown}
    return Plan(host, settings, directory, servers, instances, vos, refused, watched)


def _shown(
    config: Config, settings: Xrootd, own: str, refused: dict[str, str], *, multiuser: bool
) -> Iterator[Shown]:
    assert config.storage is not None
    several = multiuser and settings.backend != "instances"
    if settings.backend == "multiuser" and not multiuser:
        raise ConfigError(["storage.xrootd.backend: the xrootd-multiuser plugin is not installed"])
    for export in config.storage.exports:
        if settings.exports and export.label not in settings.exports:
            continue
        accounts = accounts_of(config, export, own)
        why = _why_not(export, accounts, several)
        if why:
            refused[export.label] = why
            continue
        account = accounts[0] if len(accounts) == 1 else ""
        yield Shown(export.label, export.prefix, export.root, export.vo, account, accounts)


def _why_not(export: Export, accounts: tuple[str, ...], several: bool) -> str:
    if not accounts:
        return f"no mapping leads VO {export.vo} to an account"
    if len(accounts) > 1 and not several:
        return (
            f"several accounts ({', '.join(accounts)}): one server per export serves one; name it in "
            "storage.export.accounts, or install the xrootd-multiuser plugin"
        )
    if any(character.isspace() or character in "$#" for character in f"{export.prefix}{export.root}"):
        return "xrootd's configuration allows no blank, '$' or '#' in prefix and root"
    return ""


def _instances(
    config: Config, settings: Xrootd, shown: tuple[Shown, ...], directory: Path, own: str
) -> Iterator[Instance]:
    manager = own if config.accounts.mode == "self" else config.runtime.user
    together = settings.backend == "multiuser" or any(not one.account for one in shown)
    if together:
        yield Instance(MULTIUSER, Role.MULTIUSER, manager, settings.port, shown, directory / MULTIUSER)
    elif len(shown) == 1:
        yield _data(shown[0], Role.ALONE, settings.port, directory)
    elif shown:
        yield Instance(MANAGER, Role.MANAGER, manager, settings.port, shown, directory / MANAGER)
        for index, one in enumerate(shown):
            yield _data(one, Role.DATA, settings.data_port + index, directory)


def _data(one: Shown, role: Role, port: int, directory: Path) -> Instance:
    name = f"{one.label}-{one.account}"
    return Instance(name, role, one.account, port, (one,), directory / name)


def accounts_of(config: Config, export: Export, own: str) -> tuple[str, ...]:
    """Who may use the export; in self mode the one account there is."""
    if config.accounts.mode == "self":
        return (own,)
    return export.accounts or tuple(dict.fromkeys(_mapped(config, export.vo)))


def _mapped(config: Config, vo: str) -> Iterable[str]:
    vo_of = {issuer.url: issuer.vo for issuer in config.issuers}
    return (rule.account for rule in config.mappings if (rule.vo or vo_of.get(rule.issuer)) == vo)


def _speaks_for(config: Config, issuer: Issuer, vo: str) -> bool:
    """Its own VO, or one that a mapping rule makes of it."""
    return issuer.vo == vo or any(rule.issuer == issuer.url and rule.vo == vo for rule in config.mappings)
