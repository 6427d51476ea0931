"""Listening sockets: made here, or inherited from systemd or a parent process."""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from edged.errors import ConfigError

BACKLOG = 4096


def bind(address: str, *, reuse_port: bool = False, mode: int = 0o666) -> socket.socket:
    """A listening, non-blocking stream socket on ``host:port``, ``[v6]:port`` or ``/path``.

    Raises ConfigError.
    """
    if address.startswith("/"):
        return _bind_unix(Path(address), mode)
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host.strip("[]"), int(port)))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(address, error) from error
    return sock


def _bind_unix(path: Path, mode: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
        sock.bind(str(path))
        path.chmod(mode)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(str(path), error) from error
    return sock


def _cannot(address: str, error: OSError) -> ConfigError:
    by_whom = "; `ss -ltnp` shows by whom" if error.errno == errno.EADDRINUSE else ""
    return ConfigError([f"cannot listen on {address}: {error.strerror}{by_whom}"])


def address_of(sock: socket.socket) -> str:
    """``127.0.0.1:8443``, ``[::1]:8443`` or a path: where a bound socket is."""
    name = sock.getsockname()
    if isinstance(name, str):
        return name
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listeners(addresses: Iterable[str], inherited: list[socket.socket] | None) -> list[socket.socket]:
    """The inherited sockets when there are any, else new ones on ``addresses``."""
    if inherited:
        found = [sock.dup() for sock in inherited]
        for (
            sock
        ) in found:  # dup() restores Python's idea of the timeout, on the description all processes share
            sock.setblocking(False)
        return found
    return [bind(address) for address in addresses]
