"""One container: started, waited for, started again as its restart policy says, ended."""

import os
import signal
import subprocess
import time
from typing import Any, Dict, Optional

from .record import Logs, Record
from .runtimes import Node, NoImage

LONGEST_RESTART_S = 300.0
ENDED_BY_TERM = 143


class Container:
    """A container and its process."""

    def __init__(
        self, what: Dict[str, Any], plan: Dict[str, Any], runtime: Node, record: Record, logs: Logs
    ) -> None:
        self.what = what
        self.name: str = what["name"]
        self._plan = plan
        self._runtime = runtime
        self._record = record
        self._logs = logs
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self._restarts = 0
        self._again_at = 0.0
        self.over = False
        self._told = 0

    @property
    def log(self) -> str:
        """Its log file."""
        return "logs/" + self.name

    def start(self) -> None:
        """Start it; what keeps it from starting is its end."""
        try:
            self._runtime.prepare(self.what)
            argv = self._launcher() + self._runtime.argv(self.what)
            with open(self.log, "ab") as log:
                self._logs.watch(self.log)
                self._process = subprocess.Popen(
                    argv,
                    env=self._runtime.environment(self.what),
                    cwd=self._runtime.directory(self.what),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._record.running(self.name)
        except NoImage as error:
            self._fail(125, "ErrImagePull", str(error))
        except subprocess.TimeoutExpired:
            self._fail(125, "ErrImagePull", "fetching the image took too long")
        except OSError as error:
            self._fail(127, "StartError", "%s: %s" % (error.filename or self.name, error.strerror))

    def _fail(self, code: int, reason: str, message: str) -> None:
        self._record.ended(self.name, code, reason, message)
        self.over = True

    def _launcher(self) -> "list[str]":
        mpi = self.what["mpi"]
        return [mpi[0], "-np", os.environ.get("SLURM_NTASKS", "1")] + mpi[1:] if mpi else []

    def look(self) -> None:
        """Take over its end, or start it again when it is time."""
        if self.over:
            return
        if self._again_at:
            if time.monotonic() >= self._again_at:
                self._again_at = 0.0
                self._keep_log()
                self.start()
            return
        if self._process is None or self._process.poll() is None:
            return
        code = self._process.returncode
        self._process = None
        self._runtime.end(self.what)
        self._ended(128 - code if code < 0 else code)
        if self._again(code):
            self._record.restarts(self.name)
            delay = min(self._plan["restart_s"] * 2**self._restarts, LONGEST_RESTART_S)
            self._restarts += 1
            self._again_at = time.monotonic() + delay
            self._record.waiting(self.name, "CrashLoopBackOff", "starts again in %d s" % delay)
        else:
            self.over = True

    def _ended(self, code: int) -> None:
        """One that was told to end did not do what it was for, whatever it says itself."""
        if self._told and code == 0:
            self._record.ended(self.name, ENDED_BY_TERM, "Terminated", "told to end; it exited with 0")
        else:
            self._record.ended(self.name, code)

    def _again(self, code: int) -> bool:
        policy = self.what["restart"]
        wanted = policy == "Always" or (policy == "OnFailure" and code != 0)
        return wanted and self._restarts < self._plan["max_restarts"]

    def _keep_log(self) -> None:
        for ending in ("", ".times"):
            if os.path.exists(self.log + ending):
                os.replace(self.log + ending, self.log + ".previous" + ending)

    @property
    def alive(self) -> bool:
        """Whether a process of it runs."""
        return self._process is not None and self._process.poll() is None

    def due_s(self) -> Optional[float]:
        """Seconds until it starts again."""
        return max(0.0, self._again_at - time.monotonic()) if self._again_at else None

    def tell(self, number: int) -> None:
        """Send a signal; it will not be started again."""
        self.what["restart"] = "Never"
        if self._again_at:
            self._again_at, self.over = 0.0, True
        if self._process is None or self._process.poll() is not None or self._told == number:
            return
        self._told = number
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return
        if number == signal.SIGKILL:
            self._runtime.end(self.what)
