"""The three things systemd and a daemon say to each other: state, sockets, credentials.

Sources: sd_notify(3), sd_listen_fds(3), systemd.exec(5) CREDENTIALS.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

FIRST_FD = 3  # SD_LISTEN_FDS_START


def notify(state: str, *, status: str = "") -> None:
    """Send ``state`` to the service manager; does nothing when there is none.

    ``status`` is what `systemctl status` shows of us, one line.
    """
    if status:
        state += f"\nSTATUS={' '.join(status.split())}"
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:  # a manager that went away must not take the service with it
            return


def watchdog_period_s() -> float | None:
    """Half of WatchdogSec in seconds, or None when no watchdog watches this process."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not usec.isdigit() or int(usec) == 0 or pid != str(os.getpid()):
        return None
    return int(usec) / 2e6


class Watchdog:
    """For plain loops: ``alive()`` each round; the service manager hears of it as often as it asked."""

    def __init__(self) -> None:
        self._period = watchdog_period_s()
        self._due = 0.0

    def alive(self) -> None:
        """This round was reached. Costs nothing between two reports."""
        if self._period is not None and (now := time.monotonic()) >= self._due:
            self._due = now + self._period
            notify("WATCHDOG=1")


def inherited_sockets() -> dict[str, list[socket.socket]]:
    """Listeners handed down by the manager, by FileDescriptorName. Call once: ownership passes."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for index in range(count):
        fd = FIRST_FD + index
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        name = names[index] if index < len(names) and names[index] else "unknown"
        found.setdefault(name, []).append(sock)
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    return found


def credential(name: str) -> Path | None:
    """The file of a LoadCredential= secret, or None when systemd passed none of that name."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    path = Path(directory) / name
    return path if path.is_file() else None


def secret(file: Path) -> Path:
    """The copy of a secret that this unit was given under the file's own name, else the file itself."""
    return credential(file.name) or file


def runtime_directory() -> Path | None:
    """This unit's own directory below /run (RuntimeDirectory=), or None: the suite's is used."""
    return _directory("RUNTIME_DIRECTORY")


def log_directory() -> Path | None:
    """This unit's own directory below /var/log (LogsDirectory=), or None."""
    return _directory("LOGS_DIRECTORY")


def _directory(variable: str) -> Path | None:
    first = os.environ.get(variable, "").split(":")[0]  # systemd.exec(5): several are joined by colons
    return Path(first) if first else None
