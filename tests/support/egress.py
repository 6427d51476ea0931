"""A gate on loopback, somebody to vouch for jobs, and a piece of internet to reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from edged import config
from edged.egress.names import Names
from edged.errors import Unauthenticated
from edged.http.listen import address_of
from edged.identity.client import JobFacts
from edged.identity.words import AccountName, IssuerUrl, JobClass, JobId, Principal, Verdict, VoName
from services.egress.accounts import Accounts
from services.egress.gate import Gate

TOKEN = "the-token-of-this-job"


class Voucher:
    """Stands where identity stands: knows jobs by token, tells of ends and bans."""

    name = "voucher"

    def __init__(self) -> None:
        self.jobs: dict[JobId, tuple[str, JobFacts]] = {}
        self.trouble: str | None = None
        self._ends: list[Callable[[JobId], None]] = []
        self._bans: list[Callable[[Callable[[Principal], bool], bool], None]] = []

    def job(self, name: str, *, vo: str = "cms", nodes: tuple[str, ...] = (), token: str = TOKEN) -> JobFacts:
        """A running job whose token is ``token``."""
        principal = Principal(
            issuer=IssuerUrl("https://issuer.example/"), subject=f"subject-of-{name}", vo=VoName(vo)
        )
        facts = JobFacts(
            job=JobId(name),
            account=AccountName(f"{vo}prd"),
            vo=VoName(vo),
            job_class=JobClass.PRODUCTION,
            principal=principal,
            nodes=nodes,
        )
        self.jobs[facts.job] = (token, facts)
        return facts

    def end(self, name: str) -> None:
        self.jobs.pop(JobId(name), None)
        for callback in self._ends:
            callback(JobId(name))

    def ban(self, subject: str) -> None:
        for job, (_, facts) in list(self.jobs.items()):
            if facts.principal.subject == subject:
                del self.jobs[job]
        for callback in self._bans:
            callback(lambda principal: principal.subject == subject, False)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        yield

    def not_ready(self) -> str | None:
        return self.trouble

    async def job_facts(self, job: JobId, token: str) -> JobFacts:
        await asyncio.sleep(0)
        known = self.jobs.get(job)
        if known is None or known[0] != token:
            raise Unauthenticated("unknown or ended job, or not its token")
        return known[1]

    def on_ban(self, callback: Callable[[Callable[[Principal], bool], bool], None]) -> None:
        self._bans.append(callback)

    def on_job_end(self, callback: Callable[[JobId], None]) -> None:
        self._ends.append(callback)

    async def verdict(self, token: str) -> Verdict:
        raise Unauthenticated("only job tokens here")

    async def asserted(self, subject_dn: str, account: AccountName) -> Verdict:
        raise Unauthenticated("only job tokens here")

    async def job_grant(self, verdict: Verdict, job: JobId) -> bytes:
        raise Unauthenticated("only job tokens here")

    async def transfer_grant(self, grant: bytes, paths: tuple[str, ...]) -> bytes:
        raise Unauthenticated("only job tokens here")

    async def standing_grant(self, account: AccountName) -> bytes:
        raise Unauthenticated("only job tokens here")

    async def issue_job_token(self, grant: bytes, job: JobId) -> str:
        raise Unauthenticated("only job tokens here")

    async def report_job(self, job: JobId, nodes: tuple[str, ...], *, ended: bool) -> None:
        raise Unauthenticated("only job tokens here")


def settings(egress: dict[str, Any]) -> config.Config:
    """A configuration with this [egress]; loopback is 'inside', since here it plays the internet."""
    tree = {
        "listen": ["127.0.0.1:0"],
        "inside": ["127.0.0.0/8", "::1/128"],
        "source": [{"name": "nodes", "networks": ["127.0.0.0/8"]}],
        **egress,
    }
    return config.parse({"site": {"name": "TEST"}, "egress": tree})


@dataclass(slots=True)
class Running:
    """A gate that listens."""

    gate: Gate
    accounts: Accounts
    voucher: Voucher
    ports: list[int] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.ports[0]


@asynccontextmanager
async def gate_running(configuration: config.Config, names: Names | None = None) -> AsyncIterator[Running]:
    """The gate in this loop, on port 0."""
    assert configuration.egress is not None
    voucher, accounts = Voucher(), Accounts()
    names = names or Names(configuration.egress.resolvers)
    gate = Gate(configuration, voucher, accounts, names)
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        await stack.enter_async_context(gate.running(tasks))
        ports = [int(address_of(sock).rpartition(":")[2]) for sock in gate.listeners]
        yield Running(gate, accounts, voucher, ports)


@asynccontextmanager
async def server(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A TCP server; yields its port."""
    listening = await asyncio.start_server(handle, host, 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, then the end."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass
    finally:
        writer.close()
