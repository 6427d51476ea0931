"""The batch verbs of ``slurm``, performed on a login node: the same argv, the same parsing, another place.

A verb is plain blocking code that runs clients and reads their output. Here it runs in a thread of ours, and
each client it asks for runs on the far side, through the account's connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edged.accounts.api import BatchVerb
from edged.accounts.clients import Finished, Workplace
from edged.errors import Busy, NoSpace, Unavailable
from edged.identity.grants import peek
from edged.identity.words import Action
from services.jobs.batch.ssh.agent import Agent
from services.jobs.batch.ssh.links import Links

Result = TypeVar("Result")
T = TypeVar("T")

THREADS = 32  # verbs at once; each mostly waits
MARGIN_S = 15.0


@dataclass(frozen=True, slots=True)
class RemoteWorkplace(Workplace):
    """Where a verb works when that is elsewhere. Used by one thread, for one verb."""

    agent: Agent
    loop: asyncio.AbstractEventLoop
    held: dict[int, str] = field(default_factory=dict)

    def run_client(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        deadline_s: float,
        output_limit: int = 1 << 20,
        lock_fd: int | None = None,
        cwd: str = "/",
    ) -> Finished:
        """Run a client on the login node. Raises Unavailable when no answer came: it may have run."""
        work = self.agent.run(
            argv,
            env=env or {},
            stdin=stdin,
            deadline_s=min(deadline_s, max(0.1, self.deadline - time.monotonic())),
            limit=output_limit,
            lock=None if lock_fd is None else self.held[lock_fd],
        )
        return self._wait(work)

    @contextmanager
    def lock(self, name: str) -> Iterator[int]:
        """The helper takes the lock when the client starts, and says so when another holds it."""
        number = len(self.held)
        self.held[number] = name
        yield number

    def client_alive(self, name: str) -> bool:
        """Asked of the far side, whose lock directory all login nodes share."""
        return self._wait(self.agent.lock_held(name))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


class SshBatch:
    """``edged.accounts.api.Batch`` over SSH: what the slurm driver does its work through."""

    def __init__(self, links: Links) -> None:
        self.name = links.name
        self.links = links
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ssh-verb")

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with self.links.running(tasks):
            try:
                yield
            finally:
                self._threads.shutdown(wait=False, cancel_futures=True)

    def not_ready(self) -> str | None:
        return self.links.not_ready()

    async def perform(
        self, grant: bytes, verb: BatchVerb, result: type[Result], *, deadline_s: float
    ) -> Result:
        """See ``Batch``. Raises Busy when a submission certainly did not begin, else Unavailable."""
        loop, account = asyncio.get_running_loop(), peek(grant).account
        begun = False
        try:
            async with self.links.link(grant, verb.action) as link:
                begun = True
                where = RemoteWorkplace(
                    account=account,
                    home="/",
                    sessions=self.links.cluster.sessions.replace("{account}", account),
                    locks="",
                    deadline=time.monotonic() + deadline_s,
                    agent=link.agent,
                    loop=loop,
                )
                async with asyncio.timeout(deadline_s + MARGIN_S):
                    done: Any = await loop.run_in_executor(self._threads, verb.perform, where)
                return done  # type: ignore[no-any-return]  # the verb's own type, as the caller says
        except TimeoutError:
            raise Unavailable("the login node does not answer in time") from None
        except NoSpace as error:
            raise Busy(error.message, retry_after_s=60.0, detail=error.detail) from error
        except Unavailable as error:
            if verb.action is Action.JOB_SUBMIT and not begun:
                raise Busy(error.message, retry_after_s=5.0, detail=error.detail) from error
            raise
