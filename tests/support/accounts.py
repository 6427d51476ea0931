"""A real accountd for tests, with a key and a ban feed of their own.

``AccountStack`` signs grants as identity would and runs a real feed server (a double that is a
server). As root it serves the accounts named; otherwise self mode for the caller's own account.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edged.accounts import start
from edged.accounts.client import AccountClient
from edged.accounts.settings import PUBLIC_KEY
from edged.config import Config, parse
from edged.identity import feed
from edged.identity.grants import Ban, Grant, Scope, sign
from edged.identity.words import AccountName, Action, IssuerUrl, JobId, Principal, ServiceName, VoName

ALICE = Principal(issuer=IssuerUrl("https://issuer.test/"), subject="alice", vo=VoName("cms"))
EVERYTHING = (Scope(frozenset(Action)),)


class Feed:
    """Identity's ban feed, told by the test."""

    def __init__(self) -> None:
        self._bans: dict[str, Ban] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self.beating = True

    @asynccontextmanager
    async def running(self, path: Path) -> AsyncIterator[None]:
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._subscriber, path)
        heart = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            heart.cancel()
            server.close()
            for writer in list(self._writers):
                writer.close()

    def ban(self, ban: Ban) -> None:
        self._bans[ban.id] = ban
        self._tell([feed.Banned(ban)])

    def lift(self, ban_id: str) -> None:
        del self._bans[ban_id]
        self._tell([feed.BanLifted(ban_id)])

    async def _subscriber(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = time.monotonic()
        state: list[feed.AnyMessage] = [feed.Begin(now)]
        state += [feed.Banned(ban) for ban in self._bans.values()]
        state.append(feed.Loaded(now))
        writer.write(feed.frame(state))
        self._writers.add(writer)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(feed.HEARTBEAT_S)
            if self.beating:
                self._tell([feed.Heartbeat(time.monotonic())])

    def _tell(self, messages: Iterable[feed.AnyMessage]) -> None:
        frame = feed.frame(messages)
        for writer in list(self._writers):
            if writer.is_closing():
                self._writers.discard(writer)
            else:
                writer.write(frame)


class AccountStack:
    """accountd, a ban feed, a signing key and a client, for one configuration."""

    def __init__(self, config: Config, *, python_path: Path | None = None) -> None:
        """``python_path``: where accountd finds more entry points (batch verbs of a test)."""
        self.config = config
        self._python_path = python_path
        self.key = Ed25519PrivateKey.generate()
        self.feed = Feed()
        self.client = AccountClient.of(config)
        self.accountd: start.Accountd | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AccountStack]:
        """Everything up, the client connected and the bans loaded."""
        self.publish_key()
        self.config.runtime.run.mkdir(parents=True, exist_ok=True)
        async with self.feed.running(self.config.runtime.run / feed.SOCKET):
            self.accountd = await asyncio.to_thread(self._start)
            try:
                async with asyncio.TaskGroup() as tasks, self.client.running(tasks):
                    yield self
            finally:
                await asyncio.to_thread(self.accountd.stop)

    def _start(self) -> start.Accountd:
        if self._python_path is None:
            return start.start_accountd(self.config)
        os.environ["PYTHONPATH"] = str(self._python_path)
        try:
            return start.start_accountd(self.config)
        finally:
            del os.environ["PYTHONPATH"]

    def publish_key(self) -> None:
        file = self.config.runtime.state / PUBLIC_KEY
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def access(
        self,
        account: str,
        scopes: tuple[Scope, ...] = EVERYTHING,
        *,
        service: str = "storage",
        principal: Principal = ALICE,
        life_s: float = 300.0,
    ) -> bytes:
        """An access grant, as identity signs it for a token."""
        return self._sign("access", account, scopes, service, principal, life_s)

    def job(self, account: str, job: str, *, principal: Principal = ALICE, service: str = "jobs") -> bytes:
        """A job grant with everything a job grant may hold."""
        actions = frozenset(action for action in Action if action.value.startswith("job."))
        return self._sign("job", account, (Scope(actions),), service, principal, 86400.0, JobId(job))

    def standing(self, account: str) -> bytes:
        """A grant that only polls."""
        return self._sign("standing", account, (Scope(frozenset({Action.JOB_POLL})),), "jobs", None, 300.0)

    def _sign(
        self,
        kind: str,
        account: str,
        scopes: tuple[Scope, ...],
        service: str,
        principal: Principal | None,
        life_s: float,
        job: JobId | None = None,
    ) -> bytes:
        now = time.time()
        grant = Grant(
            kind=kind,  # type: ignore[arg-type]
            id=uuid.uuid4().hex,
            service=ServiceName(service),
            account=AccountName(account),
            scopes=scopes,
            principal=principal,
            issued_at=now,
            expires_at=now + life_s,
            job=job,
        )
        return sign(grant, self.key)


def own_account() -> str:
    """The account that self mode serves here."""
    from edged.accounts.settings import own_name

    return own_name()


def is_root() -> bool:
    return os.geteuid() == 0


def configuration(
    scratch: Path,
    accounts: Iterable[str],
    *,
    idle_s: float = 900.0,
    mode: str | None = None,
    allowed: tuple[str, ...] = (),
) -> Config:
    """A site with one export ``/cms`` in ``scratch/export`` and sessions in ``scratch/sessions``."""
    scratch.chmod(0o755)
    export = scratch / "export"
    export.mkdir(exist_ok=True)
    export.chmod(0o777)
    issuer = "https://issuer.test/"
    mode = mode or ("accountd" if is_root() else "self")
    tree: dict[str, object] = {
        "site": {"name": "TEST"},
        "runtime": {"state": str(scratch / "state"), "run": str(scratch / "run")},
        "accounts": {"mode": mode, "idle_s": idle_s, "allowed": allowed},
        "issuer": [{"url": issuer, "audience": ["test"], "vo": "cms"}],
        "mapping": [{"issuer": issuer, "account": account} for account in accounts],
        "jobs": {"sessions": str(scratch / "sessions")},
        "storage": {"export": [{"prefix": "/cms", "root": str(export), "vo": "cms"}]},
    }
    return parse(tree)


def processes(accountd: start.Accountd) -> dict[str, int]:
    """Process name → pid, of everything below the keeper. Workers are ``f-worker:…`` and ``b-worker:…``."""
    found: dict[str, int] = {}
    waiting = [accountd.pid]
    while waiting:
        pid = waiting.pop()
        try:
            found[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
