"""A throw-away real Slurm of this machine: munge, MariaDB, slurmdbd, slurmctld and several slurmd.

Everything lies in one temporary directory, listens on loopback at ports found free, and is gone when the
context is left; nothing is written to /etc but the local accounts of ``local_accounts``. Several may
run at once. Needs root and the packages of ``.ci/packages.txt``.

    with SlurmTestbed() as slurm:
        subprocess.run(["sbatch", ...], env=slurm.environment)

For a developer: ``python -m tests.support.slurm up`` prints the line a shell needs, ``down`` ends it.
"""

from __future__ import annotations

import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.support import local_accounts
from tests.support.daemons import Daemon, leftovers
from tests.support.slurm_files import (
    CLUSTER,
    PORTS_BESIDE_NODES,
    Layout,
    cgroup_conf,
    gres_conf,
    slurm_conf,
    slurmdbd_conf,
)
from tests.support.slurm_release import Release
from tests.support.waiting import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "mariadb-install-db")

# whom slurmrestd runs as
REST = local_accounts.LocalAccount("edgedtr", "edgedtr", 21100)

# pilot1's default Slurm account may not submit: only a queue that names the account "ops" serves it
ACCOUNTING = """
add cluster {cluster}
add account cms atlas ops opsclosed cluster={cluster} Organization=grid
add user cmsprd account=cms cluster={cluster}
add user atlprd account=atlas cluster={cluster}
add user pilot1 account=opsclosed cluster={cluster} DefaultAccount=opsclosed
add user pilot1 account=ops cluster={cluster}
modify account opsclosed cluster={cluster} set GrpSubmitJobs=0
add qos express priority=10
modify user cmsprd set qos+=express
"""


# accounting knows gres/gpu only once slurmctld has spoken to it
ALLOCATION = "modify account cms cluster={cluster} set GrpTRESMins=cpu=600000,gres/gpu=60000"


def missing() -> str | None:
    """Why no testbed can run here, or None."""
    if os.geteuid() != 0:
        return "a real Slurm needs root"
    absent = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    return f"not installed: {', '.join(absent)} (see .ci/packages.txt)" if absent else None


class SlurmTestbed:
    """One private cluster. Keywords are those of ``Layout``, e.g. ``max_jobs=20`` or ``cgroup=True``.

    ``release``: another Slurm than the host's; munge and the database are the host's in any case.
    """

    def __init__(self, root: Path | None = None, *, release: Release | None = None, **layout: object) -> None:
        self.root = root or Path(tempfile.mkdtemp(prefix="edged-slurm-"))
        # 16 node ports are enough for any test; Layout takes what it needs
        nodes = int(str(layout.get("cpu_nodes", 2))) + int(str(layout.get("gpu_nodes", 1)))
        self.layout = Layout(
            root=self.root,
            host=socket.gethostname().partition(".")[0],
            ports=_free_ports(PORTS_BESIDE_NODES + nodes),
            database=secrets.token_hex(12),
            **layout,  # type: ignore[arg-type]
        )
        self.software = release
        self.environment = {"SLURM_CONF": str(self.layout.slurm_conf), "PATH": "/usr/bin:/bin", "LC_ALL": "C"}
        self.daemons: list[Daemon] = []
        self.controller = self._slurmctld()
        self.nodes = {node: self._slurmd(node) for node in self.layout.nodes}
        self.rest = self._slurmrestd()

    # starting and ending

    def __enter__(self) -> SlurmTestbed:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Ready to run jobs when this returns, in some 5 s (1 s without accounting)."""
        local_accounts.ensure()
        self._write_files()
        munge = self._munged()
        with ThreadPoolExecutor(1) as side:
            database = side.submit(self._make_database) if self.layout.accounting else None
            self._start(munge)
            until(self._munge_answers, "munged", 10)
            if database is not None:
                database.result()
                self._start_accounting()
        self._start(self.controller)
        for node in self.nodes.values():
            self._start(node)
        until(self._nodes_ready, "nodes idle", 30)
        if self.layout.rest:
            self.start_rest()
        if self.layout.accounting:
            self.output("sacctmgr", "-i", *ALLOCATION.format(cluster=CLUSTER).split())

    def stop(self) -> None:
        """End every process of this cluster and remove its directory. May be called again."""
        for daemon in self.daemons:
            daemon.thaw()
        if self.controller.alive() and leftovers(self.root):
            with suppress(subprocess.SubprocessError):
                self.run("scancel", "--state=RUNNING", "--partition=cpu", timeout=5)
        for daemon in self.nodes.values():
            daemon.stop(5)
        for pid in leftovers(self.root):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in reversed(self.daemons):
            daemon.stop()
        until(lambda: not leftovers(self.root), "job processes gone", 10)
        shutil.rmtree(self.root, ignore_errors=True)

    # what tests do to it

    def run(
        self, *argv: str, timeout: float = 30, user: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A Slurm client, as root or as ``user``; its status is the caller's to judge."""
        if self.software is not None and not argv[0].startswith(("mariadb", "munge")):
            group = pwd.getpwnam(user).pw_gid if user else None
            argv, user = tuple(self.software.inside(argv, user, str(group))), None
        return subprocess.run(
            argv, env=self.environment, cwd="/", capture_output=True, text=True, timeout=timeout,
            user=user, group=_group(user), extra_groups=[] if user else None, check=False,
        )  # fmt: skip

    def output(self, *argv: str, timeout: float = 30) -> str:
        """Standard output of a client that must succeed."""
        done = self.run(*argv, timeout=timeout)
        if done.returncode != 0:
            raise RuntimeError(f"{argv}: {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def start_rest(self) -> None:
        """slurmrestd, listening when this returns."""
        self.layout.rest_socket.unlink(missing_ok=True)
        self._start(self.rest)
        until(self.layout.rest_socket.exists, "slurmrestd", 15)

    def stop_controller(self) -> None:
        """A clean end of slurmctld; it saves its state."""
        self.controller.stop()

    def kill_controller(self) -> None:
        """kill -9: jobs acknowledged in the last seconds are lost."""
        self.controller.kill()

    def freeze_controller(self) -> None:
        self.controller.freeze()

    def thaw_controller(self) -> None:
        self.controller.thaw()
        until(self.answering, "slurmctld answering", 30)

    def start_controller(self) -> None:
        """Start it again after its end, with the state it saved."""
        self._start(self.controller)
        until(self._nodes_ready, "nodes back", 45)

    def restart_controller(self) -> None:
        self.stop_controller()
        self.start_controller()

    def keep_state(self) -> None:
        """What ``lose_state`` goes back to: the controller's state as it is now, saved by a clean end."""
        self.stop_controller()
        subprocess.run(["cp", "-a", self.root / "state", self.root / "state.kept"], check=True)
        self.start_controller()

    def lose_state(self) -> None:
        """kill -9, then start with the kept state: all jobs since are forgotten, their ids are given out again.

        Returns when the nodes have told it of what they still run. Before that it would end a new job with
        the id of a forgotten one: a node's late word that the old one completed cancels a new one that waits.
        And a node starts no job whose credential is of the second, or earlier, in which it was told to abort the old
        one: those are compared by whole seconds ("Job credential revoked").
        """
        self.kill_controller()
        shutil.rmtree(self.root / "state")
        (self.root / "state.kept").rename(self.root / "state")
        self.start_controller()
        until(lambda: not self._steps(), "the forgotten jobs' steps gone", 60)
        aborted = int(time.time())
        until(lambda: int(time.time()) > aborted, "the next second", 2)

    def _steps(self) -> list[int]:
        """Supervisors of jobs. They live until a controller has taken their last word."""
        return [pid for pid in leftovers(self.root) if _comm(pid).startswith("slurmstepd")]

    def answering(self) -> bool:
        """Whether slurmctld answers a listing now."""
        try:
            return self.run("squeue", "-h", "-t", "R", timeout=3).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def kill_node(self, node: str) -> None:
        """kill -9 of a slurmd: Slurm gives the node up after SlurmdTimeout; its jobs run on."""
        self.nodes[node].kill()

    def start_node(self, node: str) -> None:
        """Bring a node back, whatever state it is in."""
        if not self.nodes[node].alive():
            self._start(self.nodes[node])
        until(lambda: self._resume(node), f"node {node} back", 45, 0.3)

    def drain(self, node: str) -> None:
        self.output("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")

    def hold(self, job: str) -> None:
        """Hold as the administrator."""
        self.output("scontrol", "hold", job)

    def release(self, job: str) -> None:
        self.output("scontrol", "release", job)

    # how it is made

    def _start(self, daemon: Daemon) -> None:
        daemon.start()
        if daemon not in self.daemons:
            self.daemons.append(daemon)

    def _write_files(self) -> None:
        layout, root = self.layout, self.root
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        for name in ("etc", "run", "log", "spool", "dev", "run/munge", "log/slurm", "state", "run/slurm",
                     "run/mariadb", "munge", "mysql"):  # fmt: skip
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("log/slurm", "state", "run/slurm"):
            shutil.chown(root / name, "slurm", "slurm")
        for name in ("run/munge", "munge"):
            shutil.chown(root / name, "munge", "munge")
        for name in ("mysql", "run/mariadb"):
            shutil.chown(root / name, "mysql", "mysql")
        for name in layout.nodes:
            (root / "spool" / name).mkdir(exist_ok=True)
        for number in range(layout.gpus):
            (root / f"dev/gpu{number}").symlink_to("/dev/null")
        layout.slurm_conf.write_text(slurm_conf(layout))
        (root / "etc/gres.conf").write_text(gres_conf(layout))
        (root / "etc/cgroup.conf").write_text(cgroup_conf())
        _private(root / "etc/slurmdbd.conf", slurmdbd_conf(layout).encode(), "slurm")
        if layout.rest:
            local_accounts.ensure((REST,))
            (root / "run/rest").mkdir(exist_ok=True)
            shutil.chown(root / "run/rest", REST.name, REST.group)
            _private(layout.jwt_key, secrets.token_bytes(32), "slurm")
        _private(root / "munge/munge.key", secrets.token_bytes(1024), "munge")
        (root / "munge").chmod(0o700)

    def _munged(self) -> Daemon:
        root = self.root
        argv = [
            "munged", "--foreground", f"--socket={self.layout.munge_socket}",
            f"--key-file={root}/munge/munge.key",
            f"--pid-file={root}/run/munge/munged.pid", f"--log-file={root}/munge/munged.log",
            f"--seed-file={root}/munge/seed", "--num-threads=2", "--force",
        ]  # fmt: skip
        return Daemon("munged", argv, root / "log/start.log", user="munge")

    def _munge_answers(self) -> bool:
        return self.run("munge", "-n", f"--socket={self.layout.munge_socket}", timeout=5).returncode == 0

    def _make_database(self) -> None:
        root, socket_path = self.root, self.layout.database_socket
        self.output(
            "mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={root}/mysql",
            "--auth-root-authentication-method=socket", "--skip-test-db", "--skip-log-bin",
            "--innodb-log-file-size=8M", f"--tmpdir={root}/run/mariadb", timeout=60,
        )  # fmt: skip
        argv = [
            "mariadbd", "--no-defaults", "--user=mysql", f"--datadir={root}/mysql",
            f"--socket={socket_path}", "--skip-networking", f"--tmpdir={root}/run/mariadb",
            f"--pid-file={root}/run/mariadb/mariadb.pid",
            "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=8M",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
        ]  # fmt: skip
        self._start(Daemon("mariadbd", argv, root / "log/mariadbd.log"))
        client = ["mariadb", "--no-defaults", f"--socket={socket_path}"]
        until(lambda: self.run(*client, "-e", "SELECT 1").returncode == 0, "mariadbd", 30)
        self.output(*client, "-e", "CREATE DATABASE slurm_acct_db; "
            f"CREATE USER slurm@localhost IDENTIFIED BY '{self.layout.database}'; "
            "GRANT ALL ON slurm_acct_db.* TO slurm@localhost;")  # fmt: skip

    def _start_accounting(self) -> None:
        # slurmdbd reads slurmdbd.conf beside SLURM_CONF; the socket is found by MYSQL_UNIX_PORT
        environment = {
            "SLURM_CONF": str(self.layout.slurm_conf),
            "MYSQL_UNIX_PORT": str(self.layout.database_socket),
        }
        log = self.root / "log/start.log"
        self._start(self._daemon("slurmdbd", ["slurmdbd", "-D"], log, "slurm", environment))
        until(self._accounting_answers, "slurmdbd", 60)
        for line in ACCOUNTING.format(cluster=CLUSTER).strip().splitlines():
            self.output("sacctmgr", "-i", *line.split())

    def _accounting_answers(self) -> bool:
        done = self.run("sacctmgr", "-n", "list", "cluster")  # its status is 0 even when it reached nothing
        return "error:" not in done.stderr and done.returncode == 0

    def _slurmctld(self) -> Daemon:
        argv = ["slurmctld", "-D", "-f", str(self.layout.slurm_conf)]
        environment = {"SLURM_CONF": str(self.layout.slurm_conf)}
        return self._daemon("slurmctld", argv, self.root / "log/start.log", "slurm", environment)

    def _slurmd(self, node: str) -> Daemon:
        argv = ["slurmd", "-D", "-N", node, "-f", str(self.layout.slurm_conf)]
        environment = {"SLURM_CONF": str(self.layout.slurm_conf)}
        return self._daemon(f"slurmd {node}", argv, self.root / "log/start.log", None, environment)

    def _slurmrestd(self) -> Daemon:
        """It refuses to be root or SlurmUser; SLURM_JWT=daemon: it speaks for whoever brings a token."""
        argv = ["slurmrestd", "-a", "rest_auth/jwt", "-t", "4", f"unix:{self.layout.rest_socket}"]
        if not self.layout.accounting:  # slurmdbd's part would end it
            argv[1:1] = ["-s", "v0.0.38"]
        environment = {"SLURM_CONF": str(self.layout.slurm_conf), "SLURM_JWT": "daemon"}
        log = self.root / "log/start.log"
        return self._daemon("slurmrestd", argv, log, REST.name, environment)

    def _daemon(
        self, name: str, argv: list[str], log: Path, user: str | None, environment: dict[str, str]
    ) -> Daemon:
        """A daemon of Slurm: of the host's, or of another release."""
        if self.software is not None:
            argv, user = self.software.inside(argv, user), None
        return Daemon(name, argv, log, user=user, environment=environment)

    def _states(self) -> dict[str, str]:
        done = self.run("sinfo", "-h", "-N", "-o", "%N %T", timeout=15)
        return dict(line.split() for line in done.stdout.splitlines() if done.returncode == 0)

    def _nodes_ready(self) -> bool:
        usable = ("idle", "mixed", "allocated", "completing", "draining", "drained")
        states = self._states()
        running = [node for node, daemon in self.nodes.items() if daemon.alive()]
        return all(states.get(node) in usable for node in running)

    def _resume(self, node: str) -> bool:
        if self._states().get(node) in ("idle", "mixed", "allocated"):
            return True
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        return False


def _comm(pid: int) -> str:
    """The name of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def _group(user: str | None) -> int | None:
    return pwd.getpwnam(user).pw_gid if user else None


def _private(file: Path, content: bytes, owner: str) -> None:
    file.write_bytes(content)
    file.chmod(0o600)
    shutil.chown(file, owner, owner)


def _free_ports(count: int) -> tuple[int, ...]:
    """Ports below the kernel's ephemeral range, so that no outgoing connection takes one meanwhile."""
    found: list[int] = []
    held: list[socket.socket] = []
    while len(found) < count:
        port = random.randrange(11000, 32000)
        probe = socket.socket()
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.close()
            continue
        held.append(probe)
        found.append(port)
    for probe in held:
        probe.close()
    return tuple(found)


def _main(arguments: Sequence[str]) -> int:
    """``up`` runs a testbed in the background until ``down``; both take the directory as a second word."""
    root = Path(arguments[1]) if len(arguments) > 1 else Path("/var/tmp/edged-slurm")
    pid_file = root.with_suffix(".pid")
    if arguments[:1] == ["up"]:
        if why := missing():
            print(why, file=sys.stderr)
            return 1
        return _up(root, pid_file)
    if arguments[:1] == ["down"]:
        return _down(pid_file)
    print("usage: python -m tests.support.slurm up|down [DIRECTORY]", file=sys.stderr)
    return 2


def _up(root: Path, pid_file: Path) -> int:
    if root.exists():
        print(f"{root} exists: a testbed runs there, or one was killed; see {pid_file}", file=sys.stderr)
        return 1
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(reader)
        with SlurmTestbed(root) as slurm:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            pid_file.write_text(str(os.getpid()))
            os.write(writer, f"export SLURM_CONF={slurm.layout.slurm_conf}\n".encode())
            os.close(writer)
            while True:
                signal.pause()
    os.close(writer)
    with os.fdopen(reader) as answer:
        line = answer.read()
    print(line or f"it did not start; see {root}/log", end="")
    return 0 if line else 1


def _down(pid_file: Path) -> int:
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError):
        print("no testbed runs", file=sys.stderr)
        return 0
    until(lambda: not Path(f"/proc/{pid}").exists(), "its end", 60)
    pid_file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
