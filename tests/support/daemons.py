"""A daemon run in the foreground as a child: its pid is known, it can be stopped, frozen or killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.waiting import until


@dataclass(slots=True)
class Daemon:
    """One program, run as ``user``. ``log`` receives what it prints."""

    name: str
    argv: Sequence[str]
    log: Path
    user: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **self.environment}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.argv,
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.alive():
            os.kill(self.pid, number)

    def freeze(self) -> None:
        """SIGSTOP, and wait until the kernel has stopped it: a later connection is then never answered."""
        self.signal(signal.SIGSTOP)
        until(lambda: state(self.pid) in ("T", "t"), f"{self.name} stopped", 5)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)

    def stop(self, deadline_s: float = 15.0) -> None:
        """SIGTERM, then SIGKILL after the deadline."""
        if not self.alive():
            return
        self.thaw()
        self.signal(signal.SIGTERM)
        try:
            assert self.process is not None
            self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()


def state(pid: int) -> str:
    """The one-letter state from /proc, empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return text.rpartition(")")[2].split()[0]


def leftovers(root: Path) -> list[int]:
    """Pids of step daemons and job processes of the Slurm that lives in ``root``, of nobody else's."""
    return [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _belongs(pid, os.fsencode(root))
    ]


def _belongs(pid: int, root: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        if b"\0SLURM_JOB_ID=" in environment and b"SLURM_CONF=" + root + b"/" in environment:
            return True
        if Path(f"/proc/{pid}/comm").read_text().strip() != "slurmstepd":
            return False
        links = [os.fsencode(os.readlink(link)) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # it ended, or is not ours to look at
        return False
    return any(target.startswith(root + b"/") for target in links)
