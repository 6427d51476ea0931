"""Connections to login nodes: one per account, kept, re-made, more under load, ended with their certificate.

The credential is a key made here that nobody else ever sees and a certificate of minutes that the signer
gives for a grant (or, where the site says so, a key file per account). A connection goes on working after
its certificate has ended (sshd does not look again), so ending it is our duty.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncssh

from edged import metrics
from edged.config.batch import SshCluster
from edged.errors import Denied, EdgeError, Unavailable
from edged.identity import grants
from edged.identity.words import AccountName, Action
from edged.lifecycle import Background
from edged.logs import get_logger
from edged.sshca import Credentials
from services.jobs.batch.ssh.agent import Agent
from services.jobs.batch.ssh.logins import Logins, Node, trusted

log = get_logger("edged.jobs.ssh")

RETIRE_S = 60.0  # before its certificate's end (or a third of its life) a connection takes nothing new
HOUSEKEEPING_S = 1.0

LINKS = metrics.gauge("ssh_connections", "SSH connections to login nodes.", ("cluster",))
CONNECTS = metrics.counter("ssh_connects", "Attempts to connect, by outcome.", ("cluster", "outcome"))

Owner = tuple[AccountName, str]
Key = asyncssh.SSHKey | tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]


@dataclass(eq=False, slots=True)
class Link:
    """One SSH connection as one account. ``ends_at``, ``retires_at``: Unix seconds, infinite for a key."""

    connection: asyncssh.SSHClientConnection
    node: Node
    agent: Agent
    ends_at: float
    retires_at: float
    used_at: float = 0.0
    users: int = 0
    closed: bool = False
    _sftp: asyncssh.SFTPClient | None = None
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    def fresh(self) -> bool:
        """Whether it may take something new."""
        return not self.closed and self.agent.alive and time.time() < self.retires_at

    async def sftp(self) -> asyncssh.SFTPClient:
        """The connection's SFTP session: one, its requests are pipelined."""
        async with self._opening:
            if self._sftp is None:
                self._sftp = await self.connection.start_sftp_client()
            return self._sftp

    def close(self) -> None:
        """End it now; whoever waits for an answer gets Unavailable."""
        if not self.closed:
            self.closed = True
            self.node.links -= 1
            self.connection.abort()


class Links:
    """The connections of one cluster. A service: connections live while it runs."""

    def __init__(self, cluster: SshCluster, credentials: Credentials) -> None:
        self.name = f"ssh {cluster.name}"
        self.cluster = cluster
        self.logins = Logins.of(cluster)
        self._trusted = trusted(cluster)
        self._credentials = credentials
        self._links: dict[Owner, list[Link]] = {}
        self._making: dict[Owner, asyncio.Lock] = {}
        self._keys: dict[Owner, asyncssh.SSHKey] = {}
        self._tasks: Background | None = None

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with Background() as work:
            self._tasks = work
            work.create_task(self._keep_house())
            try:
                yield
            finally:
                self._tasks = None
                for link in self._all():
                    link.close()

    def not_ready(self) -> str | None:
        """When no login node can be reached."""
        return None if self.logins.usable() else f"no login node: {self.logins.trouble()}"

    @asynccontextmanager
    async def link(self, grant: bytes, action: Action) -> AsyncIterator[Link]:
        """A connection as the grant's account, for a while.

        Raises Unavailable when there is none and none can be made, Denied when the signer refuses: in
        both cases nothing was asked of the far side.
        """
        found = await self._found(grant, action)
        found.users += 1
        try:
            yield found
        finally:
            found.users -= 1
            found.used_at = time.time()

    async def _found(self, grant: bytes, action: Action) -> Link:
        owner = self._owner(grant)
        best = self._best(owner)
        if best is not None and best.users < self.cluster.clients:
            return best
        lock = self._making.setdefault(owner, asyncio.Lock())
        async with lock:
            best = self._best(owner)  # somebody made one while we waited
            if best is not None and (best.users < self.cluster.clients or self._enough(owner)):
                return best
            try:
                made = await self._made(owner, grant, action)
            except EdgeError:
                if best is not None and best.fresh():
                    return best
                raise
            self._links.setdefault(owner, []).append(made)
            LINKS.labels(self.cluster.name).set(len(self._all()))
            return made

    def _owner(self, grant: bytes) -> Owner:
        """Under a forced command a certificate for polling is another than one for work."""
        seen = grants.peek(grant)
        return seen.account, seen.kind if self.cluster.force_command else ""

    def _best(self, owner: Owner) -> Link | None:
        usable = [link for link in self._links.get(owner, ()) if link.fresh()]
        return min(usable, key=lambda link: link.users, default=None)

    def _enough(self, owner: Owner) -> bool:
        fresh = [link for link in self._links.get(owner, ()) if link.fresh()]
        return len(fresh) >= self.cluster.connections * len(self.logins.nodes)

    # -- making ---------------------------------------------------------------------------------------

    async def _made(self, owner: Owner, grant: bytes, action: Action) -> Link:
        """A new connection, to the first login node that takes it. Raises Unavailable, Denied."""
        if self._tasks is None:
            raise Unavailable("edged stops")
        account, _ = owner
        key, ends_at = await self._credential(owner, grant, action)
        reasons: list[str] = []
        for node in self.logins.in_order():
            try:
                async with asyncio.timeout(self.cluster.connect_s):
                    return await self._connected(node, account, key, ends_at)
            except TimeoutError:
                reasons.append(self._failed(node, "timeout", f"no login within {self.cluster.connect_s:g} s"))
            except asyncssh.HostKeyNotVerifiable:
                CONNECTS.labels(self.cluster.name, "host-key").inc()
                node.impostor()
                reasons.append(f"{node.name}: its host key is not the pinned one")
            except asyncssh.PermissionDenied:  # the account's trouble, not the node's
                CONNECTS.labels(self.cluster.name, "denied").inc()
                reasons.append(f"{node.name}: refuses the login of {account}")
            except EdgeError as error:
                reasons.append(self._failed(node, "helper", f"{error.message} ({error.detail})"))
            except (OSError, asyncssh.Error) as error:
                reasons.append(self._failed(node, "failed", str(error)))
        raise Unavailable(f"no login node of {self.cluster.name} can be used", detail="; ".join(reasons))

    def _failed(self, node: Node, outcome: str, why: str) -> str:
        CONNECTS.labels(self.cluster.name, outcome).inc()
        node.failed(why)
        return f"{node.name}: {why}"

    async def _connected(self, node: Node, account: AccountName, key: Key, ends_at: float) -> Link:
        assert self._tasks is not None
        connection = await asyncssh.connect(
            node.host,
            node.port,
            username=account,
            client_keys=[key],
            known_hosts=self._trusted,
            config=None,
            agent_path=None,
            preferred_auth="publickey",
            gss_host=None,
            x509_trusted_certs=None,  # nothing from anybody's home directory
            x509_trusted_cert_paths=[],
            compression_algs=None,
            keepalive_interval=self.cluster.keepalive_s,
            keepalive_count_max=2,
            login_timeout=self.cluster.connect_s,
        )
        try:
            agent = await Agent.start(connection, self.cluster, account, self._tasks)
        except BaseException:
            connection.abort()
            raise
        node.worked()
        node.links += 1
        CONNECTS.labels(self.cluster.name, "ok").inc()
        now = time.time()
        retires_at = ends_at - min(RETIRE_S, (ends_at - now) / 3)
        return Link(connection, node, agent, ends_at, retires_at, used_at=now)

    async def _credential(self, owner: Owner, grant: bytes, action: Action) -> tuple[Key, float]:
        """What proves to sshd that we may be the account, and until when."""
        account, _ = owner
        if self.cluster.keys is not None:
            return _key_file(str(self.cluster.keys).replace("{account}", account)), float("inf")
        key = self._keys.get(owner)
        if key is None:
            key = self._keys[owner] = asyncssh.generate_private_key("ssh-ed25519")
        public = key.export_public_key().decode().strip()
        made = await self._credentials.ssh_certificate(grant, self.cluster.name, public, action)
        if made.account != account:
            raise Denied("the certificate is another account's")
        return (key, asyncssh.import_certificate(made.text)), made.expires_at

    # -- ending ---------------------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        """Close what is broken, unused, or at the end of its certificate."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            now = time.time()
            for owner, links in list(self._links.items()):
                for link in list(links):
                    idle = not link.users and (not link.fresh() or now - link.used_at > self.cluster.idle_s)
                    if idle or now >= link.ends_at or not link.agent.alive:
                        link.close()
                    if link.closed:
                        links.remove(link)
                if not links:
                    del self._links[owner]
            LINKS.labels(self.cluster.name).set(len(self._all()))

    def _all(self) -> list[Link]:
        return [link for links in self._links.values() for link in links]


def _key_file(path: str) -> asyncssh.SSHKey:
    try:
        return asyncssh.read_private_key(path)
    except (OSError, asyncssh.KeyImportError) as error:
        raise Unavailable("the account's SSH key cannot be read", detail=f"{path}: {error}") from error


async def quietly_closed(file: asyncssh.SFTPClientFile) -> None:
    """Close a handle of a session that may be gone."""
    with contextlib.suppress(OSError, asyncssh.Error):
        await file.close()
