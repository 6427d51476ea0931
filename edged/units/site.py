"""What of the units depends on the configuration: pure, from ``Config`` to the text of drop-ins.

The units themselves are the files of ``systemd/`` and the same everywhere. Addresses, exports, secrets and
which services there are at all is the site's; the configuration is the one place where that is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

from edged.config import Config
from edged.config.base import Section
from edged.config.egress import Egress, Relay
from edged.config.site import Front
from edged.errors import ConfigError

STATE, RUN = Path("/var/lib/edged"), Path("/run/edged")
CACHE = Path("/var/cache/edged")
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
DROP_IN = "50-site.conf"
LOCAL = """# Jobs of the local batch system are children of accountd's workers. They must outlive its restart,
# so only accountd itself is stopped, and they must work as ordinary processes, so the sandbox that they
# inherit is wide. A site with Slurm has none of this.
KillMode=process
MemoryMax=infinity
TasksMax=infinity
PrivateTmp=no
PrivateDevices=no
ProtectHome=no
ProtectSystem=no
ProtectProc=default
ProtectHostname=no
MemoryDenyWriteExecute=no
LockPersonality=no
RestrictNamespaces=no
RestrictRealtime=no
RestrictAddressFamilies=
SystemCallFilter=
RemoveIPC=no
"""


def fronts(config: Config) -> dict[str, Section]:
    """Service name → its section, of those that are configured and installed and listen themselves."""
    installed = {point.name for point in entry_points(group="edged.services")}
    sections: dict[str, Section | None] = {
        "identity-api": config.identity if config.identity.listen else None,
        "jobs": config.jobs,
        "storage": config.storage,
        "cache": config.cache,
        "egress": config.egress,
        "portal": config.portal,
    }
    return {name: found for name, found in sections.items() if found is not None and name in installed}


def wanted(config: Config) -> list[str]:
    """Every unit that edged.target brings up here, sockets first."""
    services = ["identity", "issuers", *fronts(config)]
    others = _of_services(config)
    if "edged-xrootd.service" in others:
        services.append("xrootd")
    sockets = ["edged-identity.socket", "edged-identity-feed.socket", "edged-issuers.socket"]
    sockets += [*listeners(config), *(f"edged-observe@{name}.socket" for name in services)]
    units = [*dict.fromkeys([*(f"edged-{name}.service" for name in services), *others])]
    if _has_accounts(config):
        sockets.append("edged-accountd.socket")
        units.append("edged-accountd.service")
    if config.egress is not None and config.egress.nat is not None:
        sockets.append("edged-netd.socket")
        units += ["edged-netd.service", "edged-forwarding.service"]
    if any(_has_tls(section) for section in fronts(config).values()):
        units.append("edged-renewed.path")
    return [*sockets, *units]


def listeners(config: Config) -> dict[str, tuple[str, ...]]:
    """Socket unit → its addresses, of everything here that listens to others."""
    found = {
        f"edged-{name}.socket": getattr(section, "listen", ()) for name, section in fronts(config).items()
    }
    found |= {f"edged-egress-relay@{relay.name}.socket": relay.listen for relay in _relays(config)}
    if config.egress is not None and config.egress.api is not None:
        found["edged-egress-api.socket"] = config.egress.api.listen
    if config.jobs is not None and (pods := config.jobs.interlink) is not None:
        found["edged-interlink.socket"] = pods.listen
        found["edged-interlink-plugin.socket"] = pods.plugin.listen if pods.plugin is not None else ()
    return {unit: addresses for unit, addresses in found.items() if addresses}


def drop_ins(config: Config) -> dict[str, str]:
    """``edged-jobs.socket.d/50-site.conf`` → text. Raises ConfigError for what the units cannot serve."""
    if problems := list(_problems(config)):
        raise ConfigError(problems)
    found = {"edged.target": _section("Unit", [f"Wants={unit}" for unit in wanted(config)])}
    found |= {unit: _listening(addresses) for unit, addresses in listeners(config).items()}
    for name, section in fronts(config).items():
        found[f"edged-{name}.service"] = _section("Service", _service(config, name, section))
    for name in observed(config):
        found[f"edged-observe@{name}.socket"] = _listening([config.observe.services[name]])
    for unit, lines in _of_services(config).items():
        found[unit] = _section("Service", lines)
    found["edged-issuers.service"] = _section("Service", _credentials(_introspection(config)))
    found["edged-accountd.service"] = _section("Service", _accountd(config))
    if config.tls.certificate is not None:
        found["edged-renewed.path"] = _section(
            "Path", ["PathChanged=", f"PathChanged={config.tls.certificate}"]
        )
    if config.egress is not None and _has_tls(config.egress):  # else no tunnel is cut for a certificate
        found["edged-renewed.service"] = _section(
            "Service", ["ExecStart=/bin/systemctl try-restart edged-egress.service"]
        )
    return {f"{unit}.d/{DROP_IN}": text for unit, text in found.items() if text}


def _problems(config: Config) -> Iterator[str]:
    if config.runtime.state != STATE:
        yield f"runtime.state: the units keep state in {STATE}; mount your disk there"
    if config.runtime.run != RUN:
        yield f"runtime.run: the units' sockets are in {RUN}"
    if config.accounts.mode != "accountd":
        yield "accounts.mode: the units need 'accountd'; 'self' is for `edged run` by one user"
    for name in observed(config):
        if name not in config.observe.services:
            yield f"observe.services.{name}: missing; every unit has a health listener of its own"
    for name, section in fronts(config).items():
        listen: tuple[str, ...] = getattr(section, "listen", ())
        relays = _relays(config) if name == "egress" else ()
        if not listen and not relays:
            yield f"{_KEYS.get(name, name)}.listen: missing; the socket unit needs an address"
    for unit, addresses in listeners(config).items():
        for address in addresses:
            if address.endswith(":0"):
                yield f"{_key(unit)}.listen: {address}: a socket unit needs a fixed port"


def _key(unit: str) -> str:
    """How the configuration calls what a socket unit listens for."""
    name = unit.removeprefix("edged-").removesuffix(".socket")
    relay = name.removeprefix("egress-relay@")
    return f"egress.relay {relay}" if relay != name else _KEYS.get(name, name)


_KEYS = {
    "identity-api": "identity",
    "egress-api": "egress.api",
    "interlink": "jobs.interlink",
    "interlink-plugin": "jobs.interlink.plugin",
}


def observed(config: Config) -> list[str]:
    """Services with a process, and so a health listener, of their own."""
    front = ["xrootd"] if "edged-xrootd.service" in _of_services(config) else []
    return ["identity", "issuers", *fronts(config), *front]


def _of_services(config: Config) -> dict[str, list[str]]:
    """Units that a service asks for itself, with settings of their [Service] part."""
    found: dict[str, list[str]] = {}
    for point in entry_points(group="edged.units"):
        found |= point.load()(config)
    return found


def _service(config: Config, name: str, section: Section) -> Iterator[str]:
    front = section.api if isinstance(section, Egress) else section
    if isinstance(front, Front) and name != "cache":
        yield from _tls(config, front)
    if config.cache is not None and name == "cache":
        if config.cache.store != CACHE:
            yield f"ReadWritePaths=-{config.cache.store}"
        if config.cache.access_log is not None:
            yield f"ReadWritePaths=-{config.cache.access_log.parent}"
    if config.portal is not None and name == "portal":
        secret = config.portal.oidc.client_secret_file if config.portal.oidc is not None else None
        yield from _credentials([config.portal.admin_token_file, secret])
    if config.jobs is not None and name == "jobs" and config.jobs.interlink and config.jobs.interlink.plugin:
        yield from _credentials([config.jobs.interlink.plugin.secret_file])


def _tls(config: Config, front: Front) -> Iterator[str]:
    """Certificate and key as root reads them; a front that speaks plain HTTP needs neither."""
    if not front.tls:
        yield "LoadCredential="
    elif config.tls.certificate is not None and config.tls.key is not None:
        yield "LoadCredential="
        yield f"LoadCredential=tls.crt:{config.tls.certificate}"
        yield f"LoadCredential=tls.key:{config.tls.key}"


def _credentials(files: Iterable[Path | None]) -> list[str]:
    """Secrets under their own file names, see ``systemd.secret``."""
    return [f"LoadCredential={file.name}:{file}" for file in files if file is not None]


def _introspection(config: Config) -> list[Path | None]:
    return [issuer.introspection_secret_file for issuer in config.issuers]


def _accountd(config: Config) -> Iterator[str]:
    """Where accounts may write at all. What they may there is the kernel's to say."""
    roots = [export.root for export in config.storage.exports] if config.storage else []
    roots += [config.jobs.sessions] if config.jobs else []
    if any(root.is_relative_to(home) for root in roots for home in HOMES):
        yield "ProtectHome=no"
    for root in dict.fromkeys(roots):
        yield f"ReadWritePaths=-{root}"
    if "local" in _batch_systems(config):
        yield LOCAL.strip()


def _batch_systems(config: Config) -> set[str]:
    if config.jobs is None:
        return set()
    return {config.jobs.batch, *(queue.batch for queue in config.jobs.queues if queue.batch)}


def _listening(addresses: Iterable[str]) -> str:
    """systemd and our configuration write addresses alike: 0.0.0.0:8443, [::]:8443, /run/x.sock."""
    return _section("Socket", [f"ListenStream={address}" for address in addresses])


def _section(title: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    return f"[{title}]\n{body}\n" if body else ""


def _relays(config: Config) -> tuple[Relay, ...]:
    return config.egress.relays if config.egress is not None else ()


def _has_accounts(config: Config) -> bool:
    return config.jobs is not None or config.storage is not None


def _has_tls(section: Section) -> bool:
    front = section.api if isinstance(section, Egress) else section
    return isinstance(front, Front) and front.tls
