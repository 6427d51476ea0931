"""``python -m services.egress.netd``: CAP_NET_ADMIN, one unix socket, a closed set of messages.

Single-threaded and without a loop framework on purpose: it serves one front and the odd administrator,
one message at a time, and there is nothing in it that parses a byte from the network.
"""

from __future__ import annotations

import argparse
import os
import pwd
import selectors
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import msgspec

from edged import logs, systemd
from edged.errors import BadRequest, ConfigError, EdgeError
from services.egress.netd import messages
from services.egress.netd.conntrack import Conntrack
from services.egress.netd.keeper import Keeper
from services.egress.netd.nft import Nft
from services.egress.netd.privileges import keep_only_net_admin

log = logs.get_logger("services.egress.netd")

_TICK_S = 5.0
_CLIENTS = 16
_CLIENTS_OF_THE_FRONT = _CLIENTS // 2  # one that was taken over must not shut the administrator out
_SEND_S = 1.0  # a client that does not read holds up everybody for so long, once
_PART = 24 * 1024
_ROWS = 256


class Server:
    """Accepts the front (by user id) and administrators (root, or whoever netd runs as)."""

    def __init__(
        self, keeper: Keeper, listener: socket.socket, front_uid: int, admin_uids: frozenset[int]
    ) -> None:
        self._keeper, self._listener = keeper, listener
        self._front_uid, self._admins = front_uid, admin_uids
        self._selector = selectors.DefaultSelector()
        self._clients: dict[socket.socket, bool] = {}

    def serve(self, stop: socket.socket) -> None:
        """Until ``stop`` is readable. The table stays: what it holds is safe without us."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(stop, selectors.EVENT_READ)
        ticked = time.monotonic()
        watchdog = systemd.Watchdog()
        while True:
            watchdog.alive()
            for key, _ in self._selector.select(_TICK_S):
                watchdog.alive()
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is stop:
                    return
                if sock is self._listener:
                    self._accept()
                else:
                    self._read(sock)
            if time.monotonic() - ticked >= _TICK_S:
                ticked = time.monotonic()
                self._tick()

    def _tick(self) -> None:
        try:
            self._keeper.tick()
        except EdgeError as error:
            log.error("time windows not applied", extra={"reason": str(error)})  # noqa: TRY400

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # out of descriptors, or a client that went away
            log.warning("accept failed", extra={"reason": error.strerror})
            return
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        if not self._has_room_for(uid):
            log.warning("stranger at the socket", extra={"uid": uid})
            sock.close()
            return
        sock.settimeout(_SEND_S)
        self._clients[sock] = uid in self._admins
        self._selector.register(sock, selectors.EVENT_READ)

    def _has_room_for(self, uid: int) -> bool:
        if uid in self._admins:
            return len(self._clients) < _CLIENTS
        fronts = sum(not admin for admin in self._clients.values())
        return uid == self._front_uid and fronts < _CLIENTS_OF_THE_FRONT

    def _read(self, sock: socket.socket) -> None:
        decode = messages.admin_message if self._clients[sock] else messages.front_message
        try:
            packet = sock.recv(messages.MAX + 1)
            if not packet:
                self._drop(sock)
                return
            message = decode(packet)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("client dropped", extra={"reason": str(error)})
            self._drop(sock)
            return
        try:
            for part in self._answer(message):
                sock.send(messages.encode(part))
        except OSError:
            self._drop(sock)

    def _answer(self, message: messages.FromAdmin) -> list[messages.Answer]:
        try:
            return self._do(message)
        except ConfigError as error:
            return [messages.Failed("\n".join(error.problems))]
        except BadRequest as error:
            return [messages.Failed(error.message)]
        except (EdgeError, OSError) as error:
            log.exception("not done", extra={"message": type(message).__name__})
            return [messages.Failed(str(error))]

    def _do(self, message: messages.FromAdmin) -> list[messages.Answer]:
        keeper = self._keeper
        match message:
            case messages.Answers():
                keeper.answers(message)
            case messages.Withdraw():
                keeper.withdraw(message)
            case messages.TakeUsage():
                return _usage_parts(keeper.usage())
            case messages.Plan():
                return _text_parts("\n".join(keeper.plan()))
            case messages.Apply():
                return _text_parts("\n".join(keeper.apply()))
            case messages.Show():
                return _text_parts(keeper.show())
            case messages.Off():
                return _text_parts("\n".join(keeper.off(remove=message.remove)))
        return [messages.Text("")]

    def _drop(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._clients[sock]
        sock.close()


def _text_parts(text: str) -> list[messages.Answer]:
    pieces = [text[at : at + _PART] for at in range(0, len(text), _PART)] or [""]
    return [messages.Text(piece, more=index < len(pieces) - 1) for index, piece in enumerate(pieces)]


def _usage_parts(usage: messages.Usage) -> list[messages.Answer]:
    count = max(len(usage.counted), len(usage.refused), 1)
    starts = range(0, count, _ROWS)
    return [
        messages.Usage(
            usage.counted[at : at + _ROWS], usage.refused[at : at + _ROWS], more=at + _ROWS < count
        )
        for at in starts
    ]


def listen(path: Path, group: int) -> socket.socket:
    """The socket: for its owner and the front's group."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    path.unlink(missing_ok=True)
    sock.bind(str(path))
    path.chmod(0o660)
    os.chown(path, -1, group)
    sock.listen(_CLIENTS)
    return sock


def main() -> int:
    """Apply once, then serve; returns the exit status."""
    parser = argparse.ArgumentParser(prog="edged-netd", description="Keeps table inet edged as declared.")
    parser.add_argument("--config", type=Path, default=Path("/etc/edged/edged.toml"))
    parser.add_argument("--socket", type=Path, default=Path("/run/edged") / messages.SOCKET)
    parser.add_argument("--front", default="edged", help="User the egress front runs as")
    parser.add_argument("--user", default="", help="Become this user, keeping CAP_NET_ADMIN only")
    options = parser.parse_args()
    logs.setup()
    try:
        run(options.config, options.socket, options.front, options.user)
    except ConfigError as error:
        for problem in error.problems:
            print(f"edged-netd: {problem}", file=sys.stderr)  # noqa: T201 - for the person at the terminal
        return 2
    except EdgeError as error:
        print(f"edged-netd: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def run(config: Path, path: Path, front: str, user: str) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError, Unavailable, Upstream."""
    try:
        account = pwd.getpwnam(front)
    except KeyError:
        raise ConfigError([f"--front: no user {front!r}"]) from None
    inherited = systemd.inherited_sockets().get("netd")
    listener = inherited[0] if inherited else listen(path, account.pw_gid)
    own_uid = keep_only_net_admin(user)
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    keeper = Keeper(config, Nft(), Conntrack())
    keeper.apply()
    server = Server(keeper, listener, account.pw_uid, frozenset((0, own_uid)))
    systemd.notify("READY=1")
    server.serve(woken)


if __name__ == "__main__":
    sys.exit(main())
