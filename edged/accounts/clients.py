"""Running the site's batch clients (sbatch, squeue …) so that their end can always be proven.

A client gets its own process group and dies with its worker. Who must know whether it still runs
hands it a lock: the kernel keeps an flock(2) until the last process that holds the open file ended.
"""

from __future__ import annotations

import fcntl
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edged.accounts.privileges import die_with_parent
from edged.errors import BadRequest, Conflict, Unavailable

_LOCK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CHUNK = 1 << 16
_REAP_S = 5.0


@dataclass(frozen=True, slots=True)
class Finished:
    """A client that ran. ``code`` is negative for a signal; ``timed_out``: we killed it at its deadline.

    ``truncated``: it wrote more than the limit and was killed. ``ended``: proven dead when we returned.
    """

    code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    truncated: bool = False
    ended: bool = True


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a verb works: its account, its directories, and how it runs clients.

    ``sessions`` is empty without [jobs]. ``deadline`` is on time.monotonic(): no client outlives it.
    """

    account: str
    home: str
    sessions: str
    locks: str
    deadline: float

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
        """Run a program to its end, or kill its whole group at the deadline.

        ``env`` is added to the worker's own short environment (LC_ALL=C). Raises Unavailable when it
        cannot be started: then nothing ran.
        """
        try:
            client = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                pass_fds=() if lock_fd is None else (lock_fd,),
                process_group=0,
                preexec_fn=_die_with_worker,  # noqa: PLW1509  one prepared system call, takes no lock
            )
        except OSError as error:
            raise Unavailable(f"cannot run {Path(argv[0]).name}", detail=str(error)) from error
        deadline = min(time.monotonic() + deadline_s, self.deadline)
        with client:
            return _Exchange(client, stdin, output_limit).until(deadline)

    @contextmanager
    def lock(self, name: str) -> Iterator[int]:
        """An exclusive lock to hand to a client as ``lock_fd``. Raises Conflict while anyone holds it."""
        path = self._lock_path(name)
        fd = _locked(path)
        if fd is None:
            raise Conflict("a client still runs", detail=path)
        try:
            yield fd
        finally:
            os.close(fd)
            if (alone := _locked(path)) is not None:
                Path(path).unlink()
                os.close(alone)

    def client_alive(self, name: str) -> bool:
        """Whether any process that was given this lock still lives."""
        path = self._lock_path(name)
        if not Path(path).exists():
            return False
        fd = _locked(path)
        if fd is None:
            return True
        os.close(fd)
        return False

    def _lock_path(self, name: str) -> str:
        if not _LOCK_NAME.fullmatch(name):
            raise BadRequest("not a lock name")
        return f"{self.locks}/{name}.lock"


def _locked(path: str) -> int | None:
    """The locked, open file at ``path``; None while another holds it. An unlinked file does not count."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = Path(path).stat()
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            os.close(fd)
            continue
        if there.st_ino == os.fstat(fd).st_ino:
            return fd
        os.close(fd)


def _die_with_worker() -> None:
    die_with_parent(signal.SIGKILL)


class _Exchange:
    """Feeds a client and collects what it says, both with a limit."""

    def __init__(self, client: subprocess.Popen[bytes], stdin: bytes, limit: int) -> None:
        self._client = client
        self._unsent = memoryview(stdin)
        self._limit = limit
        self._said: dict[int, bytearray] = {}
        self._selector = selectors.DefaultSelector()

    def until(self, deadline: float) -> Finished:
        """Talk until it closes its outputs and ends, or until ``deadline`` (time.monotonic())."""
        assert self._client.stdin and self._client.stdout and self._client.stderr
        out, err = self._client.stdout.fileno(), self._client.stderr.fileno()
        timed_out = truncated = False
        with self._selector:
            self._selector.register(self._client.stdin, selectors.EVENT_WRITE)
            for fd in (out, err):
                os.set_blocking(fd, False)
                self._said[fd] = bytearray()
                self._selector.register(fd, selectors.EVENT_READ)
            os.set_blocking(self._client.stdin.fileno(), False)
            while self._selector.get_map() and not timed_out and not truncated:
                ready = self._selector.select(max(0.0, deadline - time.monotonic()))
                timed_out = not ready and time.monotonic() >= deadline
                for key, _ in ready:
                    self._serve(key)
                truncated = any(len(said) > self._limit for said in self._said.values())
        ended = self._end(deadline, kill=timed_out or truncated)
        timed_out = timed_out or (self._client.returncode == -signal.SIGKILL and time.monotonic() >= deadline)
        return Finished(
            code=self._client.returncode if self._client.returncode is not None else -signal.SIGKILL,
            stdout=bytes(self._said[out][: self._limit]),
            stderr=bytes(self._said[err][: self._limit]),
            timed_out=timed_out,
            truncated=truncated,
            ended=ended,
        )

    def _serve(self, key: selectors.SelectorKey) -> None:
        assert self._client.stdin is not None
        if key.fileobj is self._client.stdin:
            try:
                self._unsent = (
                    self._unsent[os.write(key.fd, self._unsent[:_CHUNK]) :] if self._unsent else self._unsent
                )
            except BlockingIOError:
                return
            except BrokenPipeError:  # it does not want to read: its exit code tells why
                self._unsent = self._unsent[:0]
            if not self._unsent:
                self._selector.unregister(key.fileobj)
                self._client.stdin.close()
            return
        data = os.read(key.fd, _CHUNK)
        if data:
            self._said[key.fd] += data
        else:
            self._selector.unregister(key.fileobj)

    def _end(self, deadline: float, *, kill: bool) -> bool:
        """Await its end, killing the whole group when it must or when the deadline passes."""
        if not kill:
            try:
                self._client.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                kill = True
            else:
                return True
        try:
            os.killpg(self._client.pid, signal.SIGKILL)
            self._client.wait(_REAP_S)
        except ProcessLookupError:
            self._client.wait(_REAP_S)
        except subprocess.TimeoutExpired:  # in an uninterruptible call: the lock tells when it is gone
            return False
        return True
