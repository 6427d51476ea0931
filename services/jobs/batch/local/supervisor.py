"""Runs one job of the ``local`` batch system and writes down what became of it.

Started as ``python -I -S supervisor.py DIRECTORY``, it detaches itself and outlives everything that started
it. No dependency but the standard library, no import of edged: an upgrade under it changes nothing.

Files in DIRECTORY, each written whole (rename) and never changed:

    request.json     what to run (from the driver)
    launcher         the script to start (from the driver)
    supervisor.json  our pid, its start time and the boot: made exclusively, so there is one supervisor ever
    started.json     the payload's pid, when it started
    ended.json       how it ended, what it used
    cancel           made by whoever wants the job to end; holds the uid
"""

# pathlib would cost more at start than all else here
# ruff: noqa: PTH108, PTH110, PTH118, PTH103, PTH208, PTH123

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 5.0  # between TERM and KILL
TURN_S = 0.25
WATCH_S = 1.0
WATCHED = {signal.SIGCHLD, signal.SIGTERM}

libc = ctypes.CDLL(None, use_errno=True)


def main(directory: str) -> int:
    """Detach; status 0 tells that the job is in a supervisor's hands."""
    os.chdir(directory)
    told, tell = os.pipe()
    if os.fork() > 0:
        os.close(tell)
        return 0 if os.read(told, 1) == b"1" else 1
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        write_once("supervisor.json", identity(os.getpid()))
    except FileExistsError:  # another has it
        os.write(tell, b"1")
        os._exit(0)
    os.write(tell, b"1")
    detach()
    try:
        Job(json.loads(read("request.json"))).run()
    finally:
        os._exit(0)


def detach() -> None:
    """Hold nothing open of who started us: a pipe, or the lock that says a client still runs."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, 65536)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what the job puts in the background stays ours


class Job:
    """One job from waiting to its end."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.child = 0
        self.status: int | None = None  # of the child, once reaped
        self.cause = ""
        self.slot = -1
        self.started_at = 0.0

    def run(self) -> None:
        if self.wait_for_turn():
            self.start()
            if self.child:
                self.watch()
            self.sweep_up()
        self.end()

    def wait_for_turn(self) -> bool:
        """A free slot, and what it depends on ended. False when it was cancelled before."""
        while True:
            if os.path.exists("cancel"):
                self.cause = "cancelled"
                return False
            ready = self.dependencies_met()
            if ready is None:
                self.cause = "dependency"
                return False
            if ready and self.take_slot():
                return True
            signal.sigtimedwait(WATCHED, TURN_S)

    def dependencies_met(self) -> bool | None:
        """True, False while one runs, None when it never will be."""
        for name, must_be_well in self.request["after"]:
            ended = load(os.path.join("..", name, "ended.json"))
            if ended is None:
                return False if os.path.exists(os.path.join("..", name)) else None
            if must_be_well and (ended["cause"] or ended["code"] != 0):
                return None
        return True

    def take_slot(self) -> bool:
        """One of the slots that all jobs of the account share; the kernel frees it when we end."""
        os.makedirs("../.slots", exist_ok=True)
        for number in range(self.request["slots"]):
            fd = os.open(f"../.slots/{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            self.slot = fd
            return True
        return False

    def start(self) -> None:
        try:
            log = os.open(
                self.request["log"],
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
        except OSError:
            self.cause = "start"
            return
        self.started_at = time.time()
        self.child = os.fork()
        if self.child == 0:
            self.become_payload(log)
        os.close(log)
        facts = identity(self.child)
        facts["at"] = self.started_at
        write_once("started.json", facts)

    def become_payload(self, log: int) -> None:
        try:
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            cpu = int(self.request["walltime_s"] * self.request["cpus"]) + 60
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.chdir(self.request["session"])
            os.execve("/bin/bash", ["bash", self.request["launcher"]], self.request["environment"])  # noqa: S606
        except BaseException:
            os._exit(126)

    def watch(self) -> None:
        """Until the payload ended, within its time and memory."""
        deadline = self.started_at + self.request["walltime_s"]
        kill_at: float | None = None
        while self.status is None:
            signal.sigtimedwait(WATCHED, WATCH_S)
            self.reap()
            if self.status is not None:
                return
            if kill_at is None and self.over(deadline):
                self.signal_all(signal.SIGTERM)
                kill_at = time.time() + GRACE_S
            elif kill_at is not None and time.time() > kill_at:
                self.signal_all(signal.SIGKILL)

    def over(self, deadline: float) -> bool:
        """Whether it has to end now; ``cause`` then says why."""
        if os.path.exists("cancel"):
            self.cause = "cancelled"
        elif time.time() > deadline:
            self.cause = "time"
        elif self.request["memory"] and memory(descendants()) > self.request["memory"]:
            self.cause = "memory"
        return bool(self.cause)

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.child:
                    self.status = status

    def signal_all(self, number: int) -> None:
        for pid in descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def sweep_up(self) -> None:
        """Nothing that the job left behind lives on."""
        while descendants():
            self.signal_all(signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, 0.05)
            self.reap()

    def end(self) -> None:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        status = self.status
        write_once(
            "ended.json",
            {
                "at": time.time(),
                "cause": self.cause,
                "code": os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
                "signal": os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0,
                "cancelled_by": int(read("cancel") or -1) if self.cause == "cancelled" else None,
                "cpu_s": used.ru_utime + used.ru_stime,
                "max_rss": used.ru_maxrss * 1024,
            },
        )


def descendants() -> list[int]:
    """Pids of all processes below us. Orphans of theirs come back to us, so none is missed."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        fields = stat_fields(int(name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    look = [os.getpid()]
    while look:
        below = children.get(look.pop(), [])
        found += below
        look += below
    return found


def memory(pids: list[int]) -> int:
    """Resident bytes of all."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm") as file:
            total += int(file.read().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE")


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from a later one with the same pid."""
    fields = stat_fields(pid)
    boot = read("/proc/sys/kernel/random/boot_id").strip()
    return {"pid": pid, "start": int(fields[19]) if fields else 0, "boot": boot}


def stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat after the name: state, ppid …, start time (20th). None: no such process."""
    text = read(f"/proc/{pid}/stat")
    return text.rpartition(")")[2].split() if text else None


def read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def load(path: str) -> Any:
    text = read(path)
    return json.loads(text) if text else None


def write_once(name: str, facts: dict[str, Any]) -> None:
    """Make ``name`` appear whole and durable. Raises FileExistsError when it exists."""
    new = f".{name}.{os.getpid()}"
    with open(new, "w") as file:
        json.dump(facts, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(new, name)
    finally:
        os.unlink(new)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
