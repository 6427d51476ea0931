"""Whole packets over SOCK_SEQPACKET unix sockets on the event loop, without streams or tasks per packet.

This is under every first sight of a token: ``tests/bench/verdicts.py`` measures it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from edged.errors import Unavailable

PACKET_BYTES = 128 * 1024
_BACKLOG = 128
_BURST = 16  # packets taken at a time, so that one peer cannot hold the loop
_UNSENT = 1024
_UCRED = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid

OnPacket = Callable[["Packets", memoryview], None]
OnClose = Callable[["Packets"], None]


class Packets:
    """One connection. ``on_packet`` must be done with its memory when it returns."""

    def __init__(self, sock: socket.socket, on_packet: OnPacket, on_close: OnClose) -> None:
        self.uid = peer_uid(sock)
        self.closed = False
        self._sock = sock
        self._on_packet = on_packet
        self._on_close = on_close
        self._unsent: deque[bytes] = deque()
        self._held: list[bytes] | None = None  # answers of a burst, sent together: one wake-up of the peer
        self._buffer = bytearray(PACKET_BYTES + 1)
        self._view = memoryview(self._buffer)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, packet: bytes) -> None:
        """Send now or as soon as the peer reads; who lets too much gather is cut off."""
        if self.closed:
            raise Unavailable("the connection is closed")
        if self._held is not None:
            self._held.append(packet)
            return
        if self._unsent:
            self._defer(packet)
            return
        try:
            self._sock.send(packet)
        except BlockingIOError:
            self._defer(packet)
        except OSError as error:
            self.close()
            raise Unavailable("the connection broke", detail=str(error)) from error

    def close(self) -> None:
        """End the connection; ``on_close`` is called once."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._on_close(self)

    def _defer(self, packet: bytes) -> None:
        if len(self._unsent) >= _UNSENT:
            self.close()
            raise Unavailable("the peer does not read its answers")
        if not self._unsent:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._unsent.append(packet)

    def _writable(self) -> None:
        try:
            while self._unsent:
                self._sock.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        held: list[bytes] = []
        self._held = held
        self._take_burst()
        self._held = None
        try:
            for packet in held:
                self.send(packet)
        except Unavailable:
            return  # closed on the way: there is nobody to answer

    def _take_burst(self) -> None:
        for _ in range(_BURST):
            try:
                size = self._sock.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not 0 < size <= PACKET_BYTES:
                self.close()
                return
            self._on_packet(self, self._view[:size])
            if self.closed:
                return


def peer_uid(sock: socket.socket) -> int:
    """The uid the kernel vouches for (SO_PEERCRED, unix(7))."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid


def connect(path: Path, on_packet: OnPacket, on_close: OnClose) -> Packets:
    """A connection to the service at ``path``. Raises Unavailable when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(str(path))  # a unix connect never waits: it works or fails
        return Packets(sock, on_packet, on_close)
    except OSError as error:
        sock.close()
        raise Unavailable("nobody answers at the local socket", detail=f"{path}: {error}") from error


def bind(path: Path, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> socket.socket:
    """A listening unix socket; anyone may connect, the uid decides what is answered."""
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise Unavailable(f"cannot listen on {path}: {os.strerror(error.errno or 0)}") from error
    return sock


@asynccontextmanager
async def serving(
    listener: socket.socket,
    on_packet: OnPacket,
    on_close: OnClose = lambda _: None,
    *,
    on_open: OnClose = lambda _: None,
    limit: int = 256,
) -> AsyncIterator[set[Packets]]:
    """Accept on ``listener`` while entered; yields the open connections. ``on_open`` may close its peer.

    No user but root and our own may hold more than half of ``limit``: a front gone mad shuts nobody else out.
    """
    loop = asyncio.get_running_loop()
    peers: set[Packets] = set()
    trusted = {0, os.geteuid()}

    def held(uid: int) -> int:
        return sum(peer.uid == uid for peer in peers)

    def closed(peer: Packets) -> None:
        peers.discard(peer)
        on_close(peer)

    def accept() -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # gone again, or no descriptor free: the next one is tried when it comes
            return
        sock.setblocking(False)
        if len(peers) >= limit or ((uid := peer_uid(sock)) not in trusted and held(uid) >= limit // 2):
            sock.close()
            return
        peer = Packets(sock, on_packet, closed)
        peers.add(peer)
        on_open(peer)

    loop.add_reader(listener.fileno(), accept)
    try:
        yield peers
    finally:
        loop.remove_reader(listener.fileno())
        listener.close()
        for peer in tuple(peers):
            peer.close()
