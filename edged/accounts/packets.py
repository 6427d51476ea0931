"""Packets on SOCK_SEQPACKET unix sockets: whole messages, each with at most one file descriptor."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import threading

MAX_PACKET = 65536
_ANCILLARY = socket.CMSG_SPACE(4 * 4)
# plain ints: each `|` of socket's IntFlags costs more than encoding a message
NOW = int(socket.MSG_DONTWAIT)
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_TRUNCATED = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_RIGHTS = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_INT = struct.Struct("i")
_BODY_LIMIT = 32 << 20


class BrokenPeer(Exception):
    """The other side broke the protocol: truncated packet, several descriptors, or nonsense."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, both blocking and close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, data: bytes, fd: int | None = None, flags: int = 0) -> None:
    """Send one packet. Raises OSError (BlockingIOError on a full non-blocking socket)."""
    if fd is None:
        sock.send(data, flags | _NOSIGNAL)
    else:
        sock.sendmsg((data,), ((*_RIGHTS, _INT.pack(fd)),), flags | _NOSIGNAL)


class Receiver:
    """Reads packets into one buffer per thread, so that a packet costs no 64 KiB allocation."""

    def __init__(self) -> None:
        self._local = threading.local()

    def receive(self, sock: socket.socket, flags: int = 0) -> tuple[memoryview, int | None] | None:
        """The packet (valid until the next call in this thread) and its descriptor; None at the end.

        Raises BrokenPeer, or OSError (BlockingIOError when there is nothing).
        """
        try:
            view: memoryview = self._local.view
        except AttributeError:
            view = self._local.view = memoryview(bytearray(MAX_PACKET))
        size, ancillary, told, _ = sock.recvmsg_into((view,), _ANCILLARY, flags | _CLOEXEC)
        fds = _descriptors(ancillary) if ancillary else ()
        if told & _TRUNCATED or len(fds) > 1:
            for fd in fds:
                os.close(fd)
            raise BrokenPeer("packet too long, or more than one descriptor")
        if size == 0:  # we never send empty packets, so this is the end
            for fd in fds:
                os.close(fd)
            return None
        return view[:size], fds[0] if fds else None


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found: tuple[int, ...] = ()
    for level, kind, data in ancillary:
        if (level, kind) == _RIGHTS:
            found += tuple(fd for (fd,) in _INT.iter_unpack(data[: len(data) - len(data) % _INT.size]))
    return found


def in_memory(data: bytes) -> int:
    """A memfd with ``data``, for what does not fit a packet. The caller closes it."""
    fd = os.memfd_create("edged-body", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_memory(fd: int) -> bytes:
    """What ``in_memory`` wrote. Reads by pread, never maps: the sender may still shrink it.

    Raises BrokenPeer when it does not lie in memory, or is too large. Does not close ``fd``. Only memory has
    seals, so this is asked first: stat and read of a file may wait for ever for a file server of the sender's.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BrokenPeer(f"body descriptor does not lie in memory: {error}") from error
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > _BODY_LIMIT:
        raise BrokenPeer("body descriptor is not a small regular file")
    return os.pread(fd, facts.st_size, 0)
