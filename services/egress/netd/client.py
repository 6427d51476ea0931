"""Speaking to netd: from the front (asyncio) and from the command line."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edged.errors import Conflict, Unavailable
from services.egress.netd import messages

_WAIT_S = 30.0


class NetdClient:
    """One blocking connection, made again when it was lost. The front calls it through ``ask``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._busy = asyncio.Lock()

    def request(self, message: messages.FromAdmin) -> list[messages.Answer]:
        """All parts of the answer. Raises Unavailable (no netd) or Conflict (refused, nothing changed)."""
        try:
            sock = self._connected()
            sock.send(messages.encode(message))
            parts = list(_parts(sock))
        except (OSError, msgspec.MsgspecError) as error:
            self.close()
            raise Unavailable("netd does not answer", detail=str(error)) from error
        failed = next((part for part in parts if isinstance(part, messages.Failed)), None)
        if failed is not None:
            raise Conflict(failed.message)
        return parts

    async def ask(self, message: messages.FromFront) -> list[messages.Answer]:
        """``request`` in a thread, one at a time."""
        async with self._busy:
            return await asyncio.to_thread(self.request, message)

    def close(self) -> None:
        """Let the connection go; the next request makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            self._socket.settimeout(_WAIT_S)
            _connect(self._socket, self._path)
        return self._socket


def _parts(sock: socket.socket) -> Iterator[messages.Answer]:
    while True:
        packet = sock.recv(messages.MAX)
        if not packet:
            raise ConnectionResetError("netd closed the connection")
        part = messages.answer(packet)
        yield part
        if not part.more:
            return


def _connect(sock: socket.socket, path: Path) -> None:
    """Wait while others fill netd's backlog: a unix socket with a time-out says EAGAIN at once (connect(2))."""
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            sock.connect(str(path))
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return
