"""Starting accountd: as a child of `edged run`, or as its own unit.

A child gets its settings over a descriptor and runs in a fresh interpreter, so nothing of the front
comes along. It ends when the pipe that its parent holds is closed: that needs no signal, and works
after the parent has given up root.
"""

from __future__ import annotations

import fcntl
import gc
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from edged import openfiles, systemd
from edged.accounts.settings import Settings, settings_of
from edged.errors import ConfigError, Unavailable
from edged.logs import get_logger

if TYPE_CHECKING:
    from edged.config import Config

log = get_logger("edged.accounts")

READY_S = 15.0
STOP_S = 10.0


class Stopping(Protocol):
    """A process that we started and end."""

    def stop(self) -> None: ...


@dataclass(slots=True)
class Privileged:
    """What was started with privilege and keeps it, while this process gives it up."""

    accountd: Accountd | None = None
    others: list[Stopping] = field(default_factory=list)

    def stop(self) -> None:
        """End it. May be called twice."""
        while self.others:
            self.others.pop().stop()
        if self.accountd is not None:
            self.accountd.stop()
            self.accountd = None


@dataclass(slots=True)
class Accountd:
    """A running accountd with its keeper. ``pid`` is the keeper's; it restarts accountd when that dies."""

    process: subprocess.Popen[bytes]
    lifeline: int
    socket: Path

    @property
    def pid(self) -> int:
        """The keeper's process id."""
        return self.process.pid

    def stop(self) -> None:
        """Close the lifeline and await the end. May be called twice."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1
            self.process.wait(STOP_S)


def start_privileged(config: Config, config_file: Path) -> Privileged:
    """Start what needs root, then become ``runtime.user``. Call before threads and before listening.

    In self mode nothing is given up and nothing gained. Services bring their own such processes by the
    entry point group ``edged.privileged``: ``start(config, config_file)``. Raises ConfigError.
    """
    if config.jobs is None and config.storage is None:
        accountd = None
    else:
        _make_directories(config)
        accountd = start_accountd(config)
    beside = Privileged(accountd)
    try:
        for point in entry_points(group="edged.privileged"):
            if (process := point.load()(config, config_file)) is not None:
                beside.others.append(process)
        if config.accounts.mode == "accountd" and os.geteuid() == 0:
            drop_root(config.runtime.user)
    except BaseException:
        beside.stop()
        raise
    return beside


def start_accountd(config: Config) -> Accountd:
    """Start accountd and await its socket. Raises ConfigError, or Unavailable when it does not come up."""
    if config.accounts.mode == "accountd" and os.geteuid() != 0:
        raise ConfigError(["accounts.mode: 'accountd' needs root; 'self' uses the caller's own account only"])
    settings = settings_of(config, one_process=True)
    Path(settings.socket).parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = os.pipe()
    ready, told = os.pipe()
    facts = _settings_file(settings)
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "edged.accounts",
                "--child",
                str(ours),
                str(told),
                str(facts),
                config.log.level,
                str(config.log.audit_file or ""),
            ],
            pass_fds=(ours, told, facts),
            stdin=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(theirs)
        os.close(ready)
        raise
    finally:
        for fd in (ours, told, facts):
            os.close(fd)
    accountd = Accountd(process, theirs, Path(settings.socket))
    try:
        _await_ready(ready)
    except BaseException:
        accountd.stop()
        raise
    finally:
        os.close(ready)
    return accountd


def drop_root(user: str) -> None:
    """Be ``user`` for good. Raises ConfigError when there is no such user."""
    from edged.accounts.privileges import Account, become

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(
            [f"runtime.user: no user {user!r}; make it, or name the one edged shall run as"]
        ) from None
    groups = tuple(os.getgrouplist(user, entry.pw_gid))
    become(Account(user, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir))


def _make_directories(config: Config) -> None:
    """``state`` and ``run``, of the user that the services will be."""
    for path in (config.runtime.state, config.runtime.run):
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
        if config.accounts.mode == "accountd" and os.geteuid() == 0:
            try:
                entry = pwd.getpwnam(config.runtime.user)
            except KeyError:
                continue  # drop_root says so
            os.chown(path, entry.pw_uid, entry.pw_gid)


def _settings_file(settings: Settings) -> int:
    fd = os.memfd_create("edged-accounts", os.MFD_CLOEXEC)
    os.write(fd, msgspec.msgpack.encode(settings))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _await_ready(ready: int) -> None:
    readable, _, _ = select.select([ready], [], [], READY_S)
    if not readable or not os.read(ready, 1):
        raise Unavailable("accountd did not start; its log says why")


# --- inside the child


def keep(settings: Settings, lifeline: int, ready: int | None) -> None:
    """Run accountd in a child and start it again when it dies; end when the lifeline is closed.

    One keeper per socket: a lock beside it refuses a second.
    """
    from edged.accounts.privileges import name_process

    name_process("edged-keeper")
    _lock(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # a collection in a child would copy all our pages
    pause = 0.0
    while True:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(settings, lifeline, ready)
        if ready is not None:
            os.close(ready)
            ready = None
        _, status = os.waitpid(child, 0)
        if _gone(lifeline) or os.waitstatus_to_exitcode(status) == 0:
            return
        log.error("accountd died; starting it again", extra={"status": os.waitstatus_to_exitcode(status)})
        pause = 0.0 if time.monotonic() - started > 5.0 else min(pause * 2 or 0.1, 5.0)
        select.select([lifeline], [], [], pause)


def serve(
    settings: Settings, lifeline: int, ready: int | None, *, inherited: socket.socket | None = None
) -> None:
    """Be accountd: first the zygote, with nothing open; then the broker. Returns when told to stop.

    ``inherited`` is the service manager's listener, used instead of a new one.
    """
    from edged.accounts import packets

    ours, theirs = packets.pair()
    gc.freeze()  # as a unit nobody did so before
    if os.fork() == 0:
        _close_all_but(theirs.fileno())
        from edged.accounts import zygote  # only here: the broker has none of the workers' code

        zygote.run(theirs, own=settings.own_account is not None)
        os._exit(0)
    theirs.close()
    from edged.accounts.accountd import Accountd as Broker
    from edged.accounts.privileges import die_with_parent, name_process

    die_with_parent(signal.SIGKILL)
    name_process("edged-accountd")
    openfiles.allow()
    listener = inherited or _listener(Path(settings.socket))
    broker = Broker(settings, listener, ours)
    broker.stop_when_readable(lifeline)
    signal.signal(signal.SIGTERM, lambda *_: broker.stop())
    if ready is not None:
        os.write(ready, b"1")
        os.close(ready)
    systemd.notify("READY=1")
    broker.serve()


def _child(settings: Settings, lifeline: int, ready: int | None) -> None:
    status = 1
    try:
        serve(settings, lifeline, ready)
        status = 0
    except Exception:
        log.exception("accountd failed")
    finally:
        os._exit(status)


def _listener(path: Path) -> socket.socket:
    """accountd's socket. Anyone may connect; SO_PEERCRED decides who may speak."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(256)
    listener.setblocking(False)
    return listener


def _lock(settings: Settings) -> None:
    fd = os.open(settings.socket + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Unavailable(f"another accountd serves {settings.socket}") from None


def _close_all_but(fd: int) -> None:
    """Keep ``fd`` and the standard streams: a worker must find no lock, lifeline or socket of ours."""
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))


def _gone(lifeline: int) -> bool:
    return bool(select.select([lifeline], [], [], 0)[0])
