"""The three things systemd and a daemon say to each other: state, sockets, credentials.

Sources: sd_notify(3), sd_listen_fds(3), systemd.exec(5) CREDENTIALS.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

FIRST_FD = 3  # SD_LISTEN_FDS_START


def notify(state: str) -> None:
    """Send ``state`` to the service manager; does nothing when there is none."""
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
