"""Cuts within an SSH connection: a relay that ends it, reads what goes over its channels, and opens them again there.

To edged it is the login node, with a host key of its own; to the login node it is the account, by a key that the
node was told of. It knows the frames of ``edged-remote`` and SFTP version 3 (draft-ietf-secsh-filexfer-02).
"""

from __future__ import annotations

import asyncio
import json
import shlex
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncssh
from asyncssh.channel import SSHChannel

from tests.support.cutting.cut import Cut, Step
from tests.support.sshd import Sshd


class SessionStep(Step):
    """Where the connection ends. "asked": the request is not passed on; "done": its answer is not."""

    AUTHENTICATION = "credential shown"
    LOGGED_IN = "logged in"
    CHANNEL = "channel asked for"
    EXEC = "helper asked for"
    PROGRAM_BEGUN = "first byte of the helper's source sent"
    PROGRAM_HALF = "half of the helper's source sent"
    GREETING = "helper started, its greeting lost"
    SBATCH_ASKED = "sbatch asked"
    SBATCH_BEGUN = "sbatch's arguments sent, its script not"
    SCRIPT_HALF = "half of the script sent"
    SCRIPT_SENT = "script sent, sbatch perhaps running"
    SBATCH_DONE = "sbatch done"
    ANSWER_HALF = "half of sbatch's answer received"
    ANSWERED = "sbatch's answer received"
    SFTP = "SFTP asked for"
    MKDIR_ASKED = "SFTP mkdir asked"
    MKDIR_DONE = "SFTP mkdir done"
    OPEN_ASKED = "SFTP open asked"
    OPEN_DONE = "SFTP open done"
    WRITE_ASKED = "SFTP write asked"
    WRITE_DONE = "SFTP write done"
    FSYNC_ASKED = "SFTP fsync asked"
    FSYNC_DONE = "SFTP fsync done"
    CLOSE_ASKED = "SFTP close asked"
    CLOSE_DONE = "SFTP close done"
    RENAME_ASKED = "SFTP rename asked"
    RENAME_DONE = "SFTP rename done"


_EXTENDED = 200
_SFTP: dict[int | bytes, tuple[SessionStep, SessionStep]] = {
    3: (SessionStep.OPEN_ASKED, SessionStep.OPEN_DONE),
    4: (SessionStep.CLOSE_ASKED, SessionStep.CLOSE_DONE),
    6: (SessionStep.WRITE_ASKED, SessionStep.WRITE_DONE),
    14: (SessionStep.MKDIR_ASKED, SessionStep.MKDIR_DONE),
    b"posix-rename@openssh.com": (SessionStep.RENAME_ASKED, SessionStep.RENAME_DONE),
    b"fsync@openssh.com": (SessionStep.FSYNC_ASKED, SessionStep.FSYNC_DONE),
}

Passing = AsyncIterator[bytes | SessionStep]


class SessionRelay:
    """``login`` and ``host_key`` are what edged is configured with. ``authority``: the SSH CA it trusts, if any."""

    def __init__(self, node: Sshd, key: asyncssh.SSHKey, cut: Cut) -> None:
        self._node = node
        self._key = key
        self._host = asyncssh.generate_private_key("ssh-ed25519")
        self.authority: asyncssh.SSHKey | None = None
        self.cut = cut
        self.login = ""
        self._opened: list[asyncssh.SSHClientConnection] = []

    @property
    def host_key(self) -> str:
        return self._host.export_public_key().decode().strip()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SessionRelay]:
        listener = await asyncssh.listen(
            "127.0.0.1", 0, server_host_keys=[self._host], server_factory=lambda: _Node(self)
        )
        self.login = f"127.0.0.1:{listener.get_port()}"
        try:
            yield self
        finally:
            listener.close()
            for connection in self._opened:
                connection.abort()

    @property
    def gone(self) -> bool:
        """Whether the network is: nothing reaches the login node any more, not even an end."""
        return self.cut.done > 0 and not self.cut.told

    async def there(self, account: str) -> asyncssh.SSHClientConnection:
        """A connection to the true login node."""
        made = await asyncssh.connect(
            "127.0.0.1",
            self._node.port,
            username=account,
            client_keys=[self._key],
            known_hosts=([asyncssh.import_public_key(self._node.host_key)], [], []),
            config=None,
            agent_path=None,
        )
        self._opened.append(made)
        return made


class _Node(asyncssh.SSHServer):
    """One connection of edged's, and the one that stands for it on the other side."""

    def __init__(self, relay: SessionRelay) -> None:
        self._relay = relay
        self._making = asyncio.Lock()
        self._there: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn = conn

    def connection_lost(self, exc: Exception | None) -> None:
        if self._there is not None and not self._relay.gone:
            self._there.abort()

    def begin_auth(self, username: str) -> bool:
        self._account = username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return not self.cut(SessionStep.AUTHENTICATION) and key == self._relay.authority

    def auth_completed(self) -> None:
        self.cut(SessionStep.LOGGED_IN)

    def session_requested(self) -> Any:
        return False if self.cut(SessionStep.CHANNEL) else _Session(self)

    def cut(self, step: Step) -> bool:
        """End the connection if it is to end here."""
        if due := self._relay.cut.due(step):
            self._conn.abort()
        return due

    async def joined(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run what was asked for on the true login node, until either side ends."""
        with suppress(*_ENDED):
            async with self._making:
                if self._there is None:
                    self._there = await self._relay.there(self._account)
            there = await self._there.create_process(
                process.command, subsystem=process.subsystem, encoding=None, stderr=asyncssh.PIPE
            )
            requests, answers = _streams(process, there)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(requests, there.stdin))
                tasks.create_task(self._pass(answers, process.stdout))
                tasks.create_task(self._pass(_plain(there.stderr), process.stderr))
                await there.wait_closed()
            process.exit(there.exit_status or 0)

    async def _pass(self, passing: Passing, to: asyncssh.SSHWriter[bytes]) -> None:
        with suppress(*_ENDED):
            async for one in passing:
                if isinstance(one, bytes):
                    to.write(one)
                    await to.drain()
                elif self.cut(one):
                    return
        if not self._relay.gone:
            with suppress(*_ENDED):
                to.write_eof()


_ENDED = (OSError, EOFError, asyncssh.Error)


class _Session(asyncssh.SSHServerProcess[bytes]):
    """A channel. What it is for is asked next."""

    def __init__(self, node: _Node) -> None:
        super().__init__(lambda _: None, None, 0, False)
        self._node = node

    def connection_made(self, chan: SSHChannel[Any]) -> None:
        chan.set_encoding(None)
        self._encoding = None
        super().connection_made(chan)

    def exec_requested(self, command: str) -> bool:
        return not self._node.cut(SessionStep.EXEC)

    def subsystem_requested(self, subsystem: str) -> bool:
        return not self._node.cut(SessionStep.SFTP)

    def session_started(self) -> None:
        """As asyncssh does for any command; it would serve SFTP itself."""
        chan = self._chan
        assert chan is not None and self._conn is not None
        streams = asyncssh.SSHReader(self, chan), asyncssh.SSHWriter(self, chan)
        self._start_process(*streams, asyncssh.SSHWriter(self, chan, asyncssh.EXTENDED_DATA_STDERR))
        self._conn.create_task(self._node.joined(self))


def _streams(
    process: asyncssh.SSHServerProcess[bytes], there: asyncssh.SSHClientProcess[bytes]
) -> tuple[Passing, Passing]:
    """What passes in both directions, with the steps in between."""
    if process.subsystem:
        numbered: dict[bytes, SessionStep] = {}
        return _sftp_requests(process.stdin, numbered), _sftp_answers(there.stdout, numbered)
    assert process.command is not None
    submitting: set[int] = set()
    program = int(shlex.split(process.command.removeprefix("exec "))[3])
    return _helper_requests(process.stdin, program, submitting), _helper_answers(there.stdout, submitting)


async def _helper_requests(reader: asyncssh.SSHReader[bytes], program: int, submitting: set[int]) -> Passing:
    """See ``services/jobs/batch/ssh/remote/edged-remote``: its own source first, then frames."""
    yield await reader.readexactly(1)
    yield SessionStep.PROGRAM_BEGUN
    yield await reader.readexactly(program // 2 - 1)
    yield SessionStep.PROGRAM_HALF
    yield await reader.readexactly(program - program // 2)
    while True:
        size = await reader.readexactly(4)
        head = await reader.readexactly(struct.unpack("!I", size)[0])
        asked = json.loads(head)
        script = await reader.readexactly(asked.get("input", 0))
        if asked.get("argv", [""])[0] != "sbatch":
            yield size + head + script
            continue
        submitting.add(asked["n"])
        yield SessionStep.SBATCH_ASKED
        yield size + head
        yield SessionStep.SBATCH_BEGUN
        yield script[: len(script) // 2]
        yield SessionStep.SCRIPT_HALF
        yield script[len(script) // 2 :]
        yield SessionStep.SCRIPT_SENT


async def _helper_answers(reader: asyncssh.SSHReader[bytes], submitting: set[int]) -> Passing:
    greeting = await reader.readuntil(b"\nedged-remote 1 ") + await reader.readuntil(b"\n")
    yield SessionStep.GREETING
    yield greeting
    while True:
        size = await reader.readexactly(4)
        head = await reader.readexactly(struct.unpack("!I", size)[0])
        told = json.loads(head)
        frame = size + head + await reader.readexactly(told["out"] + told["err"])
        if told["n"] not in submitting:
            yield frame
            continue
        yield SessionStep.SBATCH_DONE
        yield frame[: len(frame) // 2]
        yield SessionStep.ANSWER_HALF
        yield frame[len(frame) // 2 :]
        yield SessionStep.ANSWERED


async def _sftp_requests(reader: asyncssh.SSHReader[bytes], numbered: dict[bytes, SessionStep]) -> Passing:
    while True:
        size = await reader.readexactly(4)
        packet = await reader.readexactly(struct.unpack("!I", size)[0])
        kind: int | bytes = packet[0]
        if kind == _EXTENDED:
            (length,) = struct.unpack("!I", packet[5:9])
            kind = packet[9 : 9 + length]
        if kind in _SFTP:
            asked, numbered[packet[1:5]] = _SFTP[kind]
            yield asked
        yield size + packet


async def _sftp_answers(reader: asyncssh.SSHReader[bytes], numbered: dict[bytes, SessionStep]) -> Passing:
    while True:
        size = await reader.readexactly(4)
        packet = await reader.readexactly(struct.unpack("!I", size)[0])
        if done := numbered.pop(packet[1:5], None):
            yield done
        yield size + packet


async def _plain(reader: asyncssh.SSHReader[bytes]) -> Passing:
    while block := await reader.read(65536):
        yield block
