"""How a front gets verdicts: over the identity socket, remembered until they end or a ban comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from edged.identity.words import AccountName, JobClass, JobId, Principal, Verdict, VoName


class JobFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's own proxy token proves. ``nodes`` are host names or addresses, empty while unknown."""

    job: JobId
    account: AccountName
    vo: VoName
    job_class: JobClass
    principal: Principal
    nodes: tuple[str, ...] = ()


class Verdicts(Protocol):
    """What services use of identity. ``IdentityClient`` is the real one, tests may run a small server."""

    name: str

    def running(self, tasks: asyncio.TaskGroup) -> AbstractAsyncContextManager[None]: ...

    def not_ready(self) -> str | None: ...

    async def verdict(self, token: str) -> Verdict:
        """The verdict on a bearer token. Raises Unauthenticated, Denied or Unavailable (feed lost > 1 s)."""
        ...

    async def asserted(self, subject_dn: str, account: AccountName) -> Verdict:
        """A verdict on an identity this front verified itself; only for accounts [[identity.assertions]] lists."""
        ...

    async def job_grant(self, verdict: Verdict, job: JobId) -> bytes:
        """A signed job grant for a job accepted under ``verdict``."""
        ...

    async def standing_grant(self, account: AccountName) -> bytes:
        """A grant that only polls, for sweeps under the poll account (or each account)."""
        ...

    def on_ban(self, callback: Callable[[Callable[[Principal], bool], bool], None]) -> None:
        """``callback(covers, keep_jobs)`` is called within a second of a ban; ``covers(principal)`` tells whom."""
        ...

    async def issue_job_token(self, verdict: Verdict, job: JobId) -> str:
        """The job's own proxy token: worthless outside that job, dead at its end."""
        ...

    async def report_job(self, job: JobId, nodes: tuple[str, ...], *, ended: bool) -> None:
        """The engine tells where a job runs, and that it ended."""
        ...

    async def job_facts(self, job: JobId, token: str) -> JobFacts:
        """Whom a job token speaks for. Raises Unauthenticated when unknown, ended, banned or wrong."""
        ...

    def on_job_end(self, callback: Callable[[JobId], None]) -> None:
        """``callback(job)`` within a second of the engine's report that a job ended."""
        ...
