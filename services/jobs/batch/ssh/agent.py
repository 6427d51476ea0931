"""The front's end of ``remote/edged-remote``: many requests over one SSH session, answered in any order."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import shlex
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import asyncssh

from edged.accounts.clients import Finished
from edged.config.batch import SshCluster
from edged.errors import Conflict, Denied, EdgeError, NoSpace, Unavailable
from edged.lifecycle import Background
from edged.logs import get_logger

log = get_logger("edged.jobs.ssh")

NOISE = 256 * 1024  # what a login shell may print before us
HEADER = 1 << 20
ANSWER = 160 << 20
WORDS = 2048
_BOOT = 'import sys; n = int(sys.argv.pop(1)); exec(compile(sys.stdin.buffer.read(n), "edged", "exec"))'
_FULL = (28, 122)  # ENOSPC, EDQUOT on Linux


@cache
def program() -> bytes:
    """The helper's source."""
    return (Path(__file__).parent / "remote" / "edged-remote").read_bytes()


def started_by(cluster: SshCluster, account: str, nonce: str) -> tuple[str, bytes]:
    """The command to ask the login node for, and what to send it first."""
    if cluster.force_command:
        return f"edged-remote serve {nonce}", b""
    options = [
        "--sessions",
        cluster.sessions.replace("{account}", account),
        "--clients",
        str(cluster.clients),
    ]
    if cluster.slurm_bin:
        options += ["--bin", cluster.slurm_bin]
    if cluster.slurm_conf:
        options += ["--conf", cluster.slurm_conf]
    source = program()
    words = [cluster.python, "-IBc", _BOOT, str(len(source)), *options, "serve", nonce]
    return "exec " + shlex.join(words), source


@dataclass(frozen=True, slots=True)
class Answer:
    """A decoded answer: its header and the bytes that came with it."""

    head: Mapping[str, Any]
    out: bytes
    err: bytes


class Agent:
    """One running helper. Every call raises Unavailable once it is gone."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes], about: str) -> None:
        self._process = process
        self._about = about
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._gone: str | None = None

    @classmethod
    async def start(
        cls, connection: asyncssh.SSHClientConnection, cluster: SshCluster, account: str, tasks: Background
    ) -> Agent:
        """Start the helper and wait for its greeting. Raises Unavailable, asyncssh.Error."""
        nonce = secrets.token_hex(16)
        command, source = started_by(cluster, account, nonce)
        process = await connection.create_process(command, encoding=None, stderr=asyncssh.PIPE)
        agent = cls(process, cluster.name)
        with suppress(
            BrokenPipeError
        ):  # it has ended already: what it said instead of its greeting tells why
            process.stdin.write(source)
        await agent._greeting(nonce)
        tasks.create_task(agent._read())
        return agent

    @property
    def alive(self) -> bool:
        """Whether it still answers, as far as is known."""
        return self._gone is None

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes,
        deadline_s: float,
        limit: int,
        lock: str | None,
    ) -> Finished:
        """Run a client there. Raises Conflict while the lock is held, Unavailable when no answer came."""
        asked = {
            "do": "run", "argv": list(argv), "env": dict(env), "deadline_s": deadline_s, "limit": limit,
            "lock": lock, "input": len(stdin),
        }  # fmt: skip
        answer = await self._ask(asked, stdin, deadline_s + 10.0)
        head = answer.head
        return Finished(
            code=int(head["code"]),
            stdout=answer.out,
            stderr=answer.err,
            timed_out=bool(head["timed_out"]),
            truncated=bool(head["truncated"]),
            ended=bool(head["ended"]),
        )

    async def lock_held(self, lock: str) -> bool:
        """Whether any process that was given this lock still lives."""
        return bool((await self._ask({"do": "alive", "lock": lock}, b"", 30.0)).head["alive"])

    async def hello(self) -> Mapping[str, Any]:
        """Account, uid, host, Python, sessions directory and clock of the far side."""
        return (await self._ask({"do": "hello"}, b"", 30.0)).head

    async def _ask(self, asked: dict[str, Any], stdin: bytes, deadline_s: float) -> Answer:
        if self._gone is not None:
            raise Unavailable(self._gone)
        number = next(self._numbers)
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[number] = waiting
        text = json.dumps({"n": number, **asked}).encode()
        try:
            async with asyncio.timeout(deadline_s):
                self._process.stdin.write(struct.pack("!I", len(text)) + text + stdin)
                await self._process.stdin.drain()
                answer = await waiting
        except TimeoutError:  # it enforces the deadline itself: now it is the connection that is half dead
            self._end("the login node does not answer any more")
            raise Unavailable("the login node does not answer any more") from None
        except (OSError, asyncssh.Error) as error:
            self._end("the connection to the login node was lost")
            raise Unavailable("the connection to the login node was lost", detail=str(error)) from error
        finally:
            self._pending.pop(number, None)
        _raise(answer.head)
        return answer

    async def _greeting(self, nonce: str) -> None:
        """Skip what the login shell prints, up to the helper's own first line."""
        mark = f"\nedged-remote 1 {nonce}\n".encode()
        seen = b""
        try:
            seen = await self._process.stdout.readuntil(mark)
        except asyncio.IncompleteReadError as error:
            raise Unavailable(
                "the login node cannot start edged's helper", detail=await self._said()
            ) from error
        if len(seen) > NOISE:
            raise Unavailable(
                "the login shell prints too much", detail=f"{len(seen)} bytes before the helper"
            )

    async def _said(self) -> str:
        """The end of stderr, for the log: a missing python3, a broken profile."""
        text = await self._process.stderr.read(WORDS)
        status = self._process.exit_status
        return f"exit {status}: {text.decode('utf-8', 'replace').strip()}"

    async def _read(self) -> None:
        reader = self._process.stdout
        why = "the connection to the login node was lost"
        try:
            while True:
                (size,) = struct.unpack("!I", await reader.readexactly(4))
                head = json.loads(await reader.readexactly(_within(size, HEADER)))
                out, err = _within(int(head["out"]), ANSWER), _within(int(head["err"]), ANSWER)
                answer = Answer(head, await reader.readexactly(out), await reader.readexactly(err))
                waiting = self._pending.get(int(head["n"]))
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except asyncio.CancelledError:
            why = "edged stops"
            raise
        except (asyncio.IncompleteReadError, OSError, asyncssh.Error):
            pass
        except (ValueError, KeyError, TypeError) as error:  # a hostile login node: nothing it says counts now
            why = "the login node answers what is no answer"
            log.warning(why, extra={"cluster": self._about, "reason": str(error)})
        finally:
            self._end(why)

    def _end(self, why: str) -> None:
        self._gone = self._gone or why
        self._process.channel.abort()
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(Unavailable(why))


def _within(size: int, limit: int) -> int:
    if not 0 <= size <= limit:
        raise ValueError("a length beyond its limit")
    return size


def _raise(head: Mapping[str, Any]) -> None:
    """The errors of the helper: whatever it refuses, nothing ran."""
    words = str(head.get("words", ""))[:300]
    match head.get("error"):
        case None:
            return
        case "locked":
            raise Conflict("a client still runs")
        case "refused":
            error: EdgeError = Denied("the helper on the login node refuses this", detail=words)
        case "os" if head.get("errno") in _FULL:
            error = NoSpace("no space on the far side", detail=words)
        case _:
            error = Unavailable("the login node cannot run the client", detail=words)
    raise error
