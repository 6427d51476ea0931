"""A machine with a real systemd as pid 1: a container of this machine, with a network of its own.

The host's own init does not matter: the root file system runs under systemd-nspawn, which is told a
cgroup of its own in every hierarchy and a network namespace that the host reaches over a veth.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import rootfs

CONTROLLERS = ("unified", "systemd", "memory", "pids", "cpu", "cpuacct", "blkio", "devices")
UP_S, DOWN_S = 90.0, 30.0
SETS = 60
# controllers of the first cgroup version are mounted read-only inside: then limits would silently not hold
INIT = (
    "for c in memory pids cpu cpuacct blkio devices; do"
    " [ ! -d /sys/fs/cgroup/$c ] || mount -o remount,bind,rw /sys/fs/cgroup/$c; done;"
    # nspawn closes all of /proc/sys; the network's part is this machine's own
    " mkdir -p /run/p && mount -t proc proc /run/p && mount --bind /run/p/sys/net /proc/sys/net && umount /run/p;"
    " exec /sbin/init"
)


class CannotBoot(Exception):
    """Why this machine cannot run another one inside."""


def require() -> None:
    """Raise CannotBoot unless a machine can be tried here."""
    if os.geteuid() != 0:
        raise CannotBoot("only root can start a machine")
    for tool, package in (
        ("systemd-nspawn", "systemd-container"),
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
    ):
        if shutil.which(tool) is None:
            raise CannotBoot(f"{tool} is missing: apt-get install {package}")


@dataclass(slots=True)
class Machine:
    """A running one. ``address`` is its own, ``outside`` the host's on the wire between them."""

    name: str
    root: Path
    address: str
    outside: str
    namespace: str
    nspawn: subprocess.Popen[bytes]
    leader: int
    cgroups: list[Path] = field(default_factory=list)

    def inside(self, *argv: str) -> list[str]:
        """The command that runs ``argv`` in there."""
        environment = ["env", "-i", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["nsenter", "-t", str(self.leader), "-a", "--root", "--wd", *environment, path, *argv]

    def run(
        self, *argv: str, stdin: str = "", check: bool = True, limit_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run it inside as root. Raises AssertionError with its words when it fails."""
        done = subprocess.run(
            self.inside(*argv), input=stdin, capture_output=True, text=True, timeout=limit_s, check=False
        )
        if check and done.returncode != 0:
            said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            raise AssertionError(f"{' '.join(argv)}: {done.returncode}\n{said}")
        return done

    def read(self, *argv: str) -> str:
        """Its standard output, stripped."""
        return self.run(*argv).stdout.strip()

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """A file inside; its directory is made."""
        target = Path(f"/proc/{self.leader}/root") / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)

    def copy(self, source: Path, path: str) -> None:
        """A file or a tree, put inside."""
        target = Path(f"/proc/{self.leader}/root") / path.lstrip("/")
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)

    def property(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.read("systemctl", "show", "--value", f"--property={name}", unit)

    def journal(self, unit: str, lines: int = 60) -> str:
        """Its last words."""
        return self.run("journalctl", "--no-pager", "-o", "cat", f"-n{lines}", "-u", unit, check=False).stdout


@contextmanager
def booted(name: str, scratch: Path, *, capabilities: Sequence[str] = ()) -> Iterator[Machine]:
    """A fresh machine, up when entered, gone without a trace when left. Raises CannotBoot."""
    require()
    root = scratch / "root"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        try:
            rootfs.unpack(root)
        except rootfs.CannotBuild as error:
            raise CannotBoot(str(error)) from error
        (root / "etc/hostname").write_text(f"{name}\n")
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        namespace = f"edged-{name}"
        outside, address = stack.enter_context(_wire(namespace))
        cgroups = [path / namespace for path in _own_cgroups()]
        stack.callback(_remove_cgroups, cgroups)
        nspawn = _start(name, root, namespace, cgroups, capabilities, scratch / "console.log")
        stack.callback(_stop, nspawn)
        leader = _leader(nspawn, scratch / "console.log")
        machine = Machine(name, root, address, outside, namespace, nspawn, leader, cgroups)
        state = machine.run("systemctl", "is-system-running", "--wait", check=False, limit_s=UP_S)
        if state.stdout.strip() != "running":
            failed = machine.run("systemctl", "--failed", "--no-legend", check=False).stdout
            raise CannotBoot(f"systemd inside is {state.stdout.strip()!r}: {failed}")
        yield machine


@contextmanager
def _wire(namespace: str) -> Iterator[tuple[str, str]]:
    """A network namespace and a veth to it: (our address, its address). Addresses no other run uses."""
    with _free_set() as number:
        outside, address = f"10.249.{number}.1", f"10.249.{number}.2"
        link = f"edged{number}o"
        _ip("netns", "add", namespace)
        try:
            _ip("link", "add", link, "type", "veth", "peer", "name", "host0", "netns", namespace)
            _ip("addr", "add", f"{outside}/30", "dev", link)
            _ip("link", "set", link, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "addr", "add", f"{address}/30", "dev", "host0")
            _ip("-n", namespace, "link", "set", "host0", "up")
            _ip("-n", namespace, "route", "add", "default", "via", outside)
            yield outside, address
        finally:
            _ip("netns", "del", namespace)


@contextmanager
def _free_set() -> Iterator[int]:
    """A number that no other test run on this machine holds: the kernel frees it when we end."""
    for number in range(1, SETS):
        lock = (rootfs.cache_directory() / f".wire-{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        with lock:
            yield number
        return
    raise CannotBoot("too many machines at once")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        raise CannotBoot(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _own_cgroups() -> list[Path]:
    """This process's directory in each hierarchy of the host."""
    mounted = Path("/sys/fs/cgroup")
    if (mounted / "cgroup.controllers").exists():  # one hierarchy for all: the second version alone
        line = Path("/proc/self/cgroup").read_text().split("::")[1].strip()
        return [mounted / line.strip("/")]
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        for name in names.removeprefix("name=").split(",") if names else ["unified"]:
            directory = mounted / name / path.strip("/")
            if name in CONTROLLERS and (names or number == "0") and directory.is_dir():
                found.append(directory)
    return found


def _start(
    name: str, root: Path, namespace: str, cgroups: list[Path], capabilities: Sequence[str], console: Path
) -> subprocess.Popen[bytes]:
    for directory in cgroups:
        directory.mkdir(parents=True, exist_ok=True)
    procs = [f"{directory}/cgroup.procs" for directory in cgroups]
    # nspawn must be born in its own cgroups, else two machines would share one tree
    enter = 'for f in "$@"; do [ "$f" = -- ] && break; echo $$ > "$f"; shift; done; shift; exec "$@"'
    command = [
        "systemd-nspawn",
        "--quiet",
        f"--directory={root}",
        f"--machine={name}",
        "--register=no",
        "--keep-unit",
        "--console=pipe",
        "--resolv-conf=off",
        "--link-journal=no",
        "--kill-signal=SIGRTMIN+4",
        "--system-call-filter=bpf",  # for IPAddressDeny=
        f"--network-namespace-path=/run/netns/{namespace}",
        *(f"--capability={one}" for one in capabilities),
        "/bin/sh",
        "-c",
        INIT,
    ]
    with console.open("wb") as log:
        return subprocess.Popen(
            ["/bin/sh", "-c", enter, "sh", *procs, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _leader(nspawn: subprocess.Popen[bytes], console: Path) -> int:
    """The container's pid 1 as the host counts, once its systemd answers."""
    deadline = time.monotonic() + UP_S
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
    while time.monotonic() < deadline and nspawn.poll() is None:
        pids = children.read_text().split() if children.exists() else []
        if pids and Path(f"/proc/{pids[0]}/root/run/systemd/private").exists():
            return int(pids[0])
        time.sleep(0.02)
    _stop(nspawn)
    raise CannotBoot(f"systemd did not start: {console.read_text(errors='replace')[-1500:]}")


def _stop(nspawn: subprocess.Popen[bytes]) -> None:
    """Halt; whoever does not, is killed. nspawn takes all below it along."""
    if nspawn.poll() is None:
        nspawn.send_signal(signal.SIGTERM)  # nspawn passes --kill-signal on
        try:
            nspawn.wait(DOWN_S)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()


def _remove_cgroups(cgroups: list[Path]) -> None:
    for top in cgroups:
        below = sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True) if top.exists() else []
        for directory in (*below, top):
            try:
                directory.rmdir()
            except OSError:
                continue
