"""[[jobs.cluster]]: batch systems that are reached from outside this machine.

A queue chooses one by ``batch = NAME``. Which keys a cluster has depends on its ``kind``.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from edged.config.base import Count, GivenPath, Seconds, Section, Word

SSH_PORT = 22


def _login(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:]+\](:\d{1,5})?", value):
        raise ValueError(f"not a login node: {value!r}; write host, host:port or [address]:port")
    return value


def _template(value: str) -> str:
    """A path on the far side (or here, for keys) with ``{account}`` in it."""
    if not value.startswith("/") or ".." in value.split("/"):
        raise ValueError("not an absolute path")
    if "{account}" not in value or re.search(r"[{}]", value.replace("{account}", "")):
        raise ValueError("needs {account} once or more, and no other braces: accounts share nothing")
    return value


def _host_key(value: str) -> str:
    if not re.fullmatch(r"(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?", value):
        raise ValueError("not a host key: write 'ssh-ed25519 AAAA…' as in ssh_host_ed25519_key.pub")
    kind, text = value.split()[:2]
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error:
        blob = b""
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()):  # RFC 4253 section 6.6
        raise ValueError(f"not a whole {kind} key: copy the line of ssh_host_*_key.pub again")
    return value


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError(f"not an address or network: {value!r}; write 192.0.2.7 or 192.0.2.0/28") from None


def _url(value: str) -> str:
    if not re.fullmatch(r"unix:/\S+|https://[^/\s]+|http://(127\.0\.0\.1|\[::1\]|localhost)(:\d+)?", value):
        raise ValueError("write unix:/run/slurmrestd.sock or https://host:port (plain http on loopback only)")
    return value.rstrip("/")


Login = Annotated[str, AfterValidator(_login)]
AccountPath = Annotated[str, AfterValidator(_template)]
HostKey = Annotated[str, AfterValidator(_host_key)]
Network = Annotated[str, AfterValidator(_network)]


class SshCluster(Section):
    """Slurm on the other side of a login node: its clients by SSH, session directories by SFTP.

    The account's credential is a certificate of minutes, signed by edged's own SSH CA (``edged ssh-ca show``
    prints what sshd needs), unless ``keys`` names a private key per account.
    """

    name: Word
    kind: Literal["ssh"]
    login: tuple[Login, ...] = Field(min_length=1, description="Login nodes, used alike: host or host:port")
    host_keys: tuple[HostKey, ...] = Field(
        default=(), description="Public host keys, any node may show any of them"
    )
    host_cas: tuple[HostKey, ...] = Field(
        default=(), description="CAs that sign the nodes' host certificates"
    )
    known_hosts: GivenPath | None = Field(default=None, description="Or a known_hosts file")
    sessions: AccountPath = Field(description="Session directories there, e.g. /scratch/{account}/edged")
    keys: AccountPath | None = Field(
        default=None, description="Private key per account, readable by the jobs service; None: certificates"
    )
    certificate_s: Seconds = Field(default=300.0, ge=60.0, le=86400.0, description="Life of a certificate")
    source_addresses: tuple[Network, ...] = Field(
        default=(), description="Where certificates may be used from (CIDR): this machine's addresses"
    )
    force_command: str = Field(
        default="", description="The installed helper with its options; then nothing else can be run there"
    )
    python: str = Field(default="python3", description="Interpreter there, 3.6 or later (no force_command)")
    connections: Count = Field(default=4, description="SSH connections at most, per account and login node")
    clients: Count = Field(default=8, le=64, description="Slurm clients at once on one connection")
    connect_s: Seconds = Field(default=15.0, description="For connecting and logging in")
    idle_s: Seconds = Field(default=600.0, description="A connection without use is closed after this")
    keepalive_s: Seconds = Field(
        default=10.0, description="Between probes; two unanswered end the connection"
    )
    stall_s: Seconds = Field(
        default=60.0, description="An SFTP request without an answer ends the connection"
    )
    slurm_bin: str = Field(
        default="", description="Directory of the clients there; empty: the account's PATH"
    )
    slurm_conf: str = Field(default="", description="SLURM_CONF there; empty: what the login shell sets")

    @model_validator(mode="after")
    def _pinned(self) -> SshCluster:
        if not (self.host_keys or self.host_cas or self.known_hosts):
            raise ValueError("host_keys: pin them (ssh-keyscan shows them; compare before you trust)")
        return self


class SlurmRestCluster(Section):
    """Slurm behind a slurmrestd. The signer holds the JWT key; fronts see tokens of minutes, one per account."""

    name: Word
    kind: Literal["slurmrest"]
    url: Annotated[str, AfterValidator(_url)] = Field(
        description="unix:/run/slurmrestd.sock or https://host:6820"
    )
    ca_file: GivenPath | None = Field(
        default=None, description="CA of an https slurmrestd; None: the system's"
    )
    jwt_key: GivenPath = Field(
        description="jwt_hs256.key of the cluster, readable by the identity service only"
    )
    token_s: Seconds = Field(default=300.0, ge=30.0, le=3600.0, description="Life of a token")
    cluster: str = Field(default="", description="Slurm's ClusterName; empty: asked from slurmrestd")
    accounting: bool = Field(
        default=True, description="slurmdbd is there; False: only slurmctld's memory counts"
    )
    sessions: AccountPath = Field(description="Session directories as compute nodes see them")
    sessions_by: Word | None = Field(
        default=None, description="An ssh cluster that reaches `sessions` by SFTP; None: mounted here"
    )
    api_version: str = Field(
        default="",
        pattern=r"^(v0\.0\.\d{2})?$",
        description="E.g. v0.0.40; empty: the newest both sides know",
    )
    connections: Count = Field(default=8, description="HTTP connections at once")


class OtherCluster(Section):
    """A cluster of a driver the site installed: ``kind`` is its entry point, ``options`` are its own."""

    name: Word
    kind: Word
    options: dict[str, str] = {}


def _kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"<{kind}>" if kind in ("ssh", "slurmrest") else "<other>"


# tags in brackets are left out of the paths that `edged check` prints
Cluster = Annotated[
    Annotated[SshCluster, Tag("<ssh>")]
    | Annotated[SlurmRestCluster, Tag("<slurmrest>")]
    | Annotated[OtherCluster, Tag("<other>")],
    Discriminator(_kind),
]


class SshPeople(Section):
    """[identity.ssh]: short SSH certificates for people, for the account their token maps to."""

    accounts: tuple[str, ...] = Field(default=(), description="Accounts people may log in as; empty: none")
    groups: tuple[str, ...] = Field(
        default=(), description="Only members of one of these groups; empty: all mapped"
    )
    life_s: Seconds = Field(
        default=3600.0, le=7 * 86400.0, description="Longest life; never beyond the token's"
    )
    pin_source: bool = Field(
        default=True, description="Valid only from the address that asked (source-address)"
    )
    source_addresses: tuple[Network, ...] = Field(
        default=(), description="Instead of pin_source: these networks (CIDR)"
    )
    extensions: tuple[
        Literal[
            "permit-pty",
            "permit-port-forwarding",
            "permit-agent-forwarding",
            "permit-X11-forwarding",
            "permit-user-rc",
        ],
        ...,
    ] = Field(default=("permit-pty",), description="What the session may have")
    force_command: str = ""

    @property
    def group_names(self) -> tuple[str, ...]:
        """``groups`` as principals write them: with a leading slash."""
        return tuple("/" + group.strip("/") for group in self.groups)


def cluster_problems(clusters: tuple[Any, ...]) -> list[str]:
    """What no single cluster can know, each ``dotted.path: what to fix``."""
    found: list[str] = []
    kinds = {cluster.name: cluster.kind for cluster in clusters}
    for index, cluster in enumerate(clusters):
        if [one.name for one in clusters].index(cluster.name) != index:
            found.append(f"jobs.cluster[{index}].name: used twice")
        by = getattr(cluster, "sessions_by", None)
        if by is not None and kinds.get(by) != "ssh":
            found.append(
                f"jobs.cluster[{index}].sessions_by: no [[jobs.cluster]] of kind ssh is named {by!r}"
            )
        found += [f"jobs.cluster[{index}].{problem}" for problem in _unreadable(cluster)]
    return found


def _unreadable(cluster: Any) -> list[str]:
    """Files that a cluster cannot do without, each ``key: what is wrong with it``."""
    if isinstance(cluster, SshCluster) and cluster.known_hosts and not Path(cluster.known_hosts).is_file():
        return ["known_hosts: no such file"]
    if isinstance(cluster, SlurmRestCluster) and cluster.ca_file:
        try:
            ssl.create_default_context(cafile=str(cluster.ca_file))
        except (OSError, ssl.SSLError) as error:
            return [f"ca_file: not PEM certificates that can be read: {error}"]
    return []


def cluster_warnings(clusters: tuple[Any, ...]) -> list[str]:
    """What is legal but unwise, or will not work yet."""
    found: list[str] = []
    for index, cluster in enumerate(clusters):
        where = f"jobs.cluster[{index}]"
        if isinstance(cluster, SshCluster) and cluster.keys:
            found.append(
                f"{where}.keys: the jobs service itself holds the accounts' keys; certificates are safer"
            )
            if not Path(str(cluster.keys).partition("{account}")[0].rpartition("/")[0] or "/").is_dir():
                found.append(f"{where}.keys: its directory does not exist")
        if isinstance(cluster, SlurmRestCluster) and not _there(cluster.jwt_key):
            found.append(f"{where}.jwt_key: no such file yet: the signer can make no token without it")
    return found


def _there(file: Path) -> bool:
    """Whether it exists; also when we may not look."""
    try:
        file.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True
