"""Login nodes: how to reach them, whose keys they must show, and how they fare."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from edged import metrics
from edged.config.batch import SSH_PORT, SshCluster
from edged.errors import ConfigError
from edged.logs import get_logger

log = get_logger("edged.jobs.ssh")

LONGEST_PAUSE_S = 60.0

NODE_UP = metrics.gauge(
    "ssh_login_node_up", "1 while the last connection attempt worked.", ("cluster", "node")
)
HOST_KEY = metrics.gauge(
    "ssh_host_key_mismatch", "1 while a login node shows a key that is not pinned.", ("cluster", "node")
)

Trusted = tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]


@dataclass(slots=True)
class Node:
    """One login node. ``pause_until`` is on time.monotonic(); ``trouble`` is for the operator."""

    cluster: str
    host: str
    port: int
    links: int = 0
    failures: int = 0
    pause_until: float = 0.0
    trouble: str = ""

    @property
    def name(self) -> str:
        return self.host if self.port == SSH_PORT else f"{self.host}:{self.port}"

    def worked(self) -> None:
        """A connection was made."""
        if self.failures:
            log.info("login node is back", extra={"cluster": self.cluster, "node": self.name})
        self.failures, self.pause_until, self.trouble = 0, 0.0, ""
        NODE_UP.labels(self.cluster, self.name).set(1)
        HOST_KEY.labels(self.cluster, self.name).set(0)

    def failed(self, why: str) -> None:
        """No connection: others are tried first for a while."""
        self.failures += 1
        self.trouble = why
        self.pause_until = time.monotonic() + min(LONGEST_PAUSE_S, 0.5 * 2 ** min(self.failures, 10))
        NODE_UP.labels(self.cluster, self.name).set(0)
        log.warning("login node", extra={"cluster": self.cluster, "node": self.name, "reason": why})

    def impostor(self) -> None:
        """It shows a host key that is not pinned: somebody between us, or a reinstalled node."""
        self.failed("shows a host key that is not pinned")
        self.pause_until = time.monotonic() + LONGEST_PAUSE_S
        HOST_KEY.labels(self.cluster, self.name).set(1)
        log.error("HOST KEY CHANGED", extra={"cluster": self.cluster, "node": self.name})


@dataclass(slots=True)
class Logins:
    """The login nodes of one cluster."""

    nodes: list[Node] = field(default_factory=list)

    @classmethod
    def of(cls, cluster: SshCluster) -> Logins:
        return cls([Node(cluster.name, *address(login)) for login in cluster.login])

    def in_order(self) -> Sequence[Node]:
        """Whom to try: those that work first, fewest connections first; those that failed come last."""
        now = time.monotonic()
        return sorted(self.nodes, key=lambda node: (node.pause_until > now, node.links, node.pause_until))

    def usable(self) -> bool:
        """Whether any node need not be waited for."""
        now = time.monotonic()
        return any(node.pause_until <= now for node in self.nodes)

    def trouble(self) -> str:
        """Every node's trouble, in words."""
        return "; ".join(f"{node.name}: {node.trouble}" for node in self.nodes if node.trouble)


def address(login: str) -> tuple[str, int]:
    """``host``, ``host:port`` and ``[address]:port``."""
    if login.startswith("["):
        host, _, rest = login[1:].partition("]")
        return host, int(rest[1:] or SSH_PORT)
    host, _, port = login.partition(":")
    return host, int(port or SSH_PORT)


def trusted(cluster: SshCluster) -> Trusted | bytes:
    """What asyncssh takes as known_hosts. Raises ConfigError for keys that are none."""
    if cluster.known_hosts is not None:
        try:
            return Path(cluster.known_hosts).read_bytes()
        except OSError as error:
            raise ConfigError([f"jobs.cluster {cluster.name}: known_hosts: {error}"]) from error
    try:
        keys = [asyncssh.import_public_key(line) for line in cluster.host_keys]
        authorities = [asyncssh.import_public_key(line) for line in cluster.host_cas]
    except asyncssh.KeyImportError as error:
        raise ConfigError([f"jobs.cluster {cluster.name}: host_keys: {error}"]) from error
    return keys, authorities, []
