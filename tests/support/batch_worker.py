"""A batch worker for tests of drivers alone: real accounts, real clients, no broker in between.

One process per account is forked before any event loop runs and becomes the account for good. It performs
the verbs one by one, as the real worker does, and answers with a value or a typed error. Grants are not
looked at here: tests of the accounts service do that.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edged.accounts.api import BatchVerb
from edged.accounts.clients import Workplace
from edged.accounts.faults import from_wire, of_os, to_wire
from edged.accounts.messages import Failure
from edged.accounts.privileges import Account, become
from edged.errors import EdgeError

Result = TypeVar("Result")


class Answer(msgspec.Struct):
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    failure: Failure | None = None


class BatchWorker:
    """One account's worker. ``close`` ends it."""

    def __init__(
        self,
        account: str,
        directory: Path,
        environment: Mapping[str, str],
        verbs: tuple[type[BatchVerb], ...],
    ) -> None:
        entry = pwd.getpwnam(account)
        self.account = account
        self.sessions = directory / "sessions" / account
        locks = directory / "locks" / account
        for path in (self.sessions, locks):
            path.mkdir(parents=True, mode=0o755)
            os.chown(path, entry.pw_uid, entry.pw_gid)
        self._near, far = socket.socketpair()
        self._turn = asyncio.Lock()
        self._pid = os.fork()
        if self._pid == 0:
            self._near.close()
            try:
                os.environ.clear()
                os.environ.update(
                    {"PATH": "/usr/bin:/bin", "HOME": entry.pw_dir, "USER": account, **environment}
                )
                if os.getuid() != entry.pw_uid:
                    become(Account(account, entry.pw_uid, entry.pw_gid, (entry.pw_gid,), entry.pw_dir))
                _serve(far, account, entry.pw_dir, str(self.sessions), str(locks), verbs)
            finally:
                os._exit(0)
        far.close()

    async def perform(
        self, grant: bytes, verb: BatchVerb, result: type[Result], *, deadline_s: float
    ) -> Result:
        """See ``edged.accounts.api.Batch``."""
        async with self._turn:
            body = await asyncio.to_thread(self._ask, type(verb).__name__, deadline_s, verb)
        answer = msgspec.msgpack.decode(body, type=Answer)
        if answer.failure is not None:
            raise from_wire(answer.failure)
        return msgspec.msgpack.decode(answer.value, type=result)

    def put(self, job: str, files: Mapping[str, tuple[bytes, int]]) -> Path:
        """Write a job's files as the engine would, owned by the account."""
        entry = pwd.getpwnam(self.account)
        session = self.sessions / job
        for name, (content, mode) in files.items():
            file = session / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(mode)
        for path in (session, *session.rglob("*")):
            os.chown(path, entry.pw_uid, entry.pw_gid)
        return session

    def cpu_s(self) -> float:
        """CPU time of the worker and of all clients it ran."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._near.close()
        os.waitpid(self._pid, 0)

    def _ask(self, kind: str, deadline_s: float, verb: BatchVerb) -> bytes:
        _send(self._near, msgspec.msgpack.encode((kind, deadline_s, msgspec.msgpack.encode(verb))))
        return _receive(self._near)


def _serve(
    far: socket.socket, account: str, home: str, sessions: str, locks: str, verbs: tuple[type[BatchVerb], ...]
) -> None:
    kinds = {verb.__name__: msgspec.msgpack.Decoder(verb) for verb in verbs}
    while True:
        try:
            kind, deadline_s, body = msgspec.msgpack.decode(_receive(far))
        except EOFError:
            return
        where = Workplace(account, home, sessions, locks, time.monotonic() + deadline_s)
        _send(far, msgspec.msgpack.encode(_performed(kinds[kind].decode(body), where)))


def _performed(verb: Any, where: Workplace) -> Answer:
    try:
        return Answer(value=msgspec.Raw(msgspec.msgpack.encode(verb.perform(where))))
    except EdgeError as error:
        return Answer(failure=to_wire(error))
    except OSError as error:
        return Answer(failure=to_wire(of_os(error)))


def _send(sock: socket.socket, body: bytes) -> None:
    sock.sendall(struct.pack("!I", len(body)) + body)


def _receive(sock: socket.socket) -> bytes:
    (size,) = struct.unpack("!I", _exactly(sock, 4))
    return _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        chunk = sock.recv(size - len(parts))
        if not chunk:
            raise EOFError
        parts += chunk
    return bytes(parts)
