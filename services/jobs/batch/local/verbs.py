"""What the account's batch worker does for the ``local`` driver: start, look, cancel."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar

import msgspec

from edged.accounts.api import BatchVerb
from edged.errors import Unavailable
from edged.identity.words import Action
from services.jobs.batch import script
from services.jobs.batch.local import facts
from services.jobs.batch.protocol import NAME_PREFIX, BatchJob, PartitionState, Submission, session_directory

if TYPE_CHECKING:
    from edged.accounts.clients import Workplace

STATE = ".local"  # beside the session directories; no job id begins with a dot
SWEPT_S = 300.0  # ended jobs stay in the sweep this long
REMEMBERED_S = 30 * 86400.0
SUPERVISOR = Path(__file__).with_name("supervisor.py")
SLOTS = max(4, os.cpu_count() or 1)


def state_directory(where: Workplace) -> Path:
    """Where the supervisors of this account write."""
    return Path(where.sessions) / STATE


def client_lock(job: str) -> str:
    """Held by whoever starts this job's supervisor, until the supervisor has taken the job."""
    return f"local-{job}"


class Start(BatchVerb, frozen=True, kw_only=True):
    """Hand the job to a supervisor of its own. A second call finds the first one's job."""

    action: ClassVar[Action] = Action.JOB_SUBMIT

    job: str
    submission: Submission
    deadline_s: float

    def perform(self, where: Workplace) -> BatchJob | None:
        """None when no supervisor took it. Raises Conflict while an earlier start still runs."""
        directory = state_directory(where) / self.job
        with where.lock(client_lock(self.job)) as lock:
            self._prepare(directory, where)
            if facts.read(directory, "") is None:
                where.run_client(self.argv(directory), deadline_s=self.deadline_s, lock_fd=lock)
        return facts.read(directory, socket.gethostname())

    def argv(self, directory: Path) -> list[str]:
        """Isolated from site packages and PYTHON* variables, so that it starts fast and alike."""
        return [_python(), "-I", "-S", str(SUPERVISOR), str(directory)]

    def _prepare(self, directory: Path, where: Workplace) -> None:
        """Make the state directory appear whole: renaming onto an earlier one fails."""
        directory.parent.mkdir(mode=0o700, exist_ok=True)
        if facts.over(directory, self.submission.run):
            old = Path(tempfile.mkdtemp(prefix=".old-", dir=directory.parent))
            directory.rename(old / "job")
            shutil.rmtree(old, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=directory.parent))
        session = session_directory(PurePosixPath(where.sessions), self.job)
        (new / "launcher").write_bytes(script.launcher(self.job, session))
        (new / "request.json").write_bytes(msgspec.json.encode(self._request(directory, session, where)))
        try:
            new.rename(directory)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            if not directory.is_dir():
                raise

    def _request(self, directory: Path, session: PurePosixPath, where: Workplace) -> facts.Request:
        asked = self.submission
        now = time.time()
        return facts.Request(
            id=str(int(now * 1e6)),
            submitted_at=now,
            session=str(session),
            launcher=str(directory / "launcher"),
            log=str(session / script.LOG),
            environment={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": where.home,
                "USER": where.account,
                "LOGNAME": where.account,
                "LC_ALL": "C",
            },
            walltime_s=asked.walltime_s,
            cpus=asked.tasks * asked.cpus_per_task,
            memory=asked.memory_per_node,
            slots=SLOTS,
            after=tuple((after.ref.name.removeprefix(NAME_PREFIX), after.ok) for after in asked.after),
            run=asked.run,
        )


class Listed(msgspec.Struct, frozen=True):
    """One JSON document a job."""

    taken_at: float
    records: list[bytes]


class List(BatchVerb, frozen=True, kw_only=True):
    """The account's jobs that have not ended, or only lately. Forgets those of a month ago."""

    action: ClassVar[Action] = Action.JOB_POLL

    def perform(self, where: Workplace) -> Listed:
        now, host = time.time(), socket.gethostname()
        jobs = (facts.read(directory, host) for directory in _current(state_directory(where), now))
        return Listed(now, [msgspec.json.encode(job) for job in jobs if job is not None])


class Look(BatchVerb, frozen=True, kw_only=True):
    """What is known of jobs by name. Raises Unavailable while one of them is just being started."""

    action: ClassVar[Action] = Action.JOB_POLL

    jobs: tuple[str, ...]

    def perform(self, where: Workplace) -> list[BatchJob]:
        host = socket.gethostname()
        if any(where.client_alive(client_lock(job)) for job in self.jobs):
            raise Unavailable("it is just being started")
        found = (facts.read(state_directory(where) / job, host) for job in self.jobs)
        return [job for job in found if job is not None]


class Cancel(BatchVerb, frozen=True, kw_only=True):
    """Write the wish down, then wake the supervisor."""

    action: ClassVar[Action] = Action.JOB_CANCEL

    job: str

    def perform(self, where: Workplace) -> None:
        directory = state_directory(where) / self.job
        try:
            (directory / "cancel").write_text(str(os.getuid()))
            supervisor = msgspec.json.decode((directory / "supervisor.json").read_bytes(), type=facts.Process)
            handle = os.pidfd_open(supervisor.pid)
        except (FileNotFoundError, ProcessLookupError, msgspec.MsgspecError):
            return
        try:
            if supervisor.alive():  # asked with the handle open, so it is the one that gets the signal
                signal.pidfd_send_signal(handle, signal.SIGTERM)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


class Machine(BatchVerb, frozen=True):
    """This machine as one partition."""

    action: ClassVar[Action] = Action.JOB_POLL

    def perform(self, where: Workplace) -> PartitionState:
        cpus = os.cpu_count() or 1
        free = max(0, cpus - round(os.getloadavg()[0]))
        return PartitionState(name="local", up=True, nodes=1, nodes_usable=1, cpus=cpus, cpus_free=free)


def _current(root: Path, now: float) -> Iterator[Path]:
    """Those of a sweep. All of a month are looked at, so this is without a Path for each."""
    forgotten: list[str] = []
    try:
        entries = os.scandir(root)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                age = now - os.stat(f"{entry.path}/ended.json").st_mtime  # noqa: PTH116 - hot
            except FileNotFoundError:
                age = 0.0
            if age <= SWEPT_S:
                yield Path(entry.path)
            elif age > REMEMBERED_S:
                forgotten.append(entry.path)
    for path in forgotten:
        shutil.rmtree(path, ignore_errors=True)


def _python() -> str:
    """An interpreter that the account may run: edged's own may lie where accounts cannot look."""
    return next(
        (path for path in (sys.executable, "/usr/bin/python3") if path and os.access(path, os.X_OK)),
        "python3",
    )
