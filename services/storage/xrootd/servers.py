"""One server on the disk and as a process: its directory, its command, becoming its account."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from edged import systemd
from edged.accounts import local
from edged.accounts.privileges import Account, become, die_with_parent
from edged.config import Config
from edged.errors import ConfigError
from services.storage.xrootd import forwarding, render
from services.storage.xrootd.installation import Installation
from services.storage.xrootd.plan import Instance, Plan, Role

CLONE_NEWUSER = 0x10000000
IDS_ONLY = "-all,+setuid,+setgid"
STAND_IN = 1000  # what root is called in the user namespace of self mode: xrootd refuses to be uid 0
_libc = ctypes.CDLL(None, use_errno=True)


class Prepared:
    """Everything an instance needs, written down. ``stamp`` changes when any of it does, and lies beside it."""

    def __init__(self, config: Config, plan: Plan, instance: Instance, installed: Installation) -> None:
        self.instance = instance
        self.account = account_of(config, instance)
        self._plan = plan
        self._programs = installed.programs
        self._gate = installed.gate
        report = f"127.0.0.1:{plan.settings.report_port}"
        self._files = render.files(config, plan, instance, installed, report=report)
        # their content, wherever they lie: a unit has copies
        self._secrets = [_read(file) for file in tls_files(config)] if instance.role is not Role.PROXY else []
        parts = [*self._files.values(), repr(self._own()), installed.shown]
        self.stamp = sha256(b"\0".join([*map(str.encode, parts), *self._secrets])).hexdigest()

    def started(self, program: str) -> None:
        """Note what ``program`` starts from: what is in the directory, whoever wrote it."""
        directory = self.instance.directory
        _replace(directory / f"{render.STAMP}.{program}", (directory / render.STAMP).read_bytes(), 0o644)

    def stale(self) -> list[str]:
        """The programs that started from something else than would be written now."""
        return [program for program in self.instance.programs if self._noted(program) != self.stamp]

    def _noted(self, program: str) -> str:
        try:
            return (self.instance.directory / f"{render.STAMP}.{program}").read_text()
        except OSError:
            return ""

    def write(self) -> None:
        """Make the directory. Only ``admin`` and the key are the account's: the rest it may not change."""
        directory = self.instance.directory
        directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _alone(directory.parent):
            directory.mkdir(mode=0o755, exist_ok=True)
            self._make_admin(directory / render.ADMIN)
            for name, content in self._files.items():
                _replace(directory / name, content.encode(), 0o644)
            if self._secrets:
                certificate, key = self._secrets
                _replace(directory / render.CERTIFICATE, certificate, 0o644)
                _replace(directory / render.KEY, key, 0o400, self._give)
            tree = directory / render.TREE
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir(mode=0o755)
            for name, root in render.links(self.instance).items():
                link = tree / name
                link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                link.symlink_to(root)
            _replace(directory / render.STAMP, self.stamp.encode(), 0o644)

    def _make_admin(self, admin: Path) -> None:
        """Where the server and its cmsd meet. It stays: the other one may run, and a unit's root cannot empty it."""
        if _owner(admin) == (self.account.uid if os.geteuid() == 0 else os.geteuid()):
            return
        if admin.exists():
            admin.rename(
                admin.with_name(f"{render.ADMIN}.{time.time_ns()}")
            )  # another account's, from before
        admin.mkdir(mode=0o700)
        self._give(admin)

    def argv(self, program: str) -> list[str]:
        """The command of ``xrootd`` or ``cmsd``."""
        config = self.instance.directory / render.CONFIG
        return [
            *self._keeping_ids(),
            str(self._programs / program),
            "-n",
            self.instance.name,
            "-c",
            str(config),
        ]

    def _keeping_ids(self) -> tuple[str, ...]:
        """The multiuser plugin becomes accounts: it keeps CAP_SETUID and CAP_SETGID and nothing else."""
        if self.instance.role is not Role.MULTIUSER or os.geteuid() != 0 or self.account.uid == 0:
            return ()
        sets = (f"--{kind}={IDS_ONLY}" for kind in ("inh-caps", "ambient-caps", "bounding-set"))
        ids = (f"--reuid={self.account.uid}", f"--regid={self.account.gid}", "--init-groups")
        return ("setpriv", *ids, *sets, "--no-new-privs", "--pdeathsig=TERM")

    def environment(self) -> dict[str, str]:
        """All that it finds in its environment. The proxy keeps its own credentials, where the site gives any."""
        found = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C",
            "HOME": "/nonexistent",
            "XDG_CACHE_HOME": str(self._plan.keys),
        }
        if self.instance.role is Role.PROXY:
            found |= forwarding.environment(self._plan, self.instance, self._gate)
            passed = ("X509_CERT_DIR", "BEARER_TOKEN_FILE", "XRD_CONNECTIONWINDOW", "XRD_CONNECTIONRETRY")
            found |= {name: os.environ[name] for name in passed if name in os.environ}
        return found

    def become_it(self, *, watched: bool = True) -> None:
        """Before exec: be the account. ``watched``: end with our parent."""
        os.umask(0o027)
        _no_cores()
        if os.geteuid() == 0:
            if self.account.uid == 0:
                _rename_root()
            elif self.instance.role is not Role.MULTIUSER:
                become(self.account)
        if watched:
            die_with_parent(signal.SIGTERM)

    def _give(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.account.uid, self.account.gid)

    def _own(self) -> tuple[tuple[int, int], ...]:
        """edged's libraries in it: a rebuilt one is loaded at once."""
        return tuple(_stamp(file) for file in (self._gate, forwarding.library(self._gate)))


def account_of(config: Config, instance: Instance) -> Account:
    """Whom it runs as. Raises Denied below the minimum uid, and for accounts this machine lacks."""
    if config.accounts.mode == "self" or os.geteuid() != 0:
        return local.own()
    if instance.role in (Role.MANAGER, Role.MULTIUSER, Role.PROXY):
        return local.find(instance.account, 1)  # a system user of the suite, not an account of people
    return local.find(instance.account, config.accounts.minimum_uid)


def tls_files(config: Config) -> tuple[Path, Path]:
    """Certificate and key. Raises ConfigError."""
    certificate = config.tls.certificate or systemd.credential("tls.certificate")
    key = systemd.credential("tls.key") or config.tls.key
    if certificate is None or key is None:
        raise ConfigError(["tls.certificate: root:// with tokens needs certificate and key"])
    return certificate, key


def own_name() -> str:
    """The account of this process."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid{os.geteuid()}"


def _rename_root() -> None:
    """Root under another number: a user namespace of its own, without rights over anything outside."""
    if _libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER): xrootd does not run as root")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{STAND_IN} 0 1")
    Path("/proc/self/gid_map").write_text(f"{STAND_IN} 0 1")


def _no_cores() -> None:
    """A core dump would hold tokens and the host key."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _replace(target: Path, content: bytes, mode: int, give: object = None) -> None:
    partial = target.with_name(f".{target.name}.new")
    partial.unlink(missing_ok=True)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as out:
        out.write(content)
    if callable(give):
        give(partial)
    partial.replace(target)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """A server and its cmsd start at the same time, and one of them writes; what is written, both may read."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    before = os.umask(0o022)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.umask(before)
        os.close(fd)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError([f"tls: {file}: {error.strerror}"]) from error


def _owner(path: Path) -> int:
    """Its uid; -1 when it is not there."""
    try:
        return path.lstat().st_uid
    except OSError:
        return -1


def _stamp(file: Path) -> tuple[int, int]:
    try:
        facts = file.stat()
    except OSError:
        return (0, 0)
    return facts.st_mtime_ns, facts.st_size
