"""The asyncio end of a packet socket: pipelined requests, each answered by its call number.

The peer may be a worker that its account has taken over: nothing it sends may hold up the loop, or another
account.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from edged.accounts import messages, packets, statx
from edged.accounts.faults import from_wire
from edged.accounts.lanes import Lane
from edged.accounts.messages import Carries, encode
from edged.accounts.packets import BrokenPeer
from edged.errors import Busy, EdgeError, Unavailable, UnknownOutcome
from edged.logs import get_logger

log = get_logger("edged.accounts")

MAX_PENDING = 4096
MAX_PACKETS = 64  # of one peer in one turn of the loop: whoever floods us has his turn only
_receiver = packets.Receiver()
_decode_reply: Callable[[memoryview], messages.ToFrontFromWorker] = messages.decoder(
    messages.ToFrontFromWorker
)


class StaleHandle(Exception):
    """The worker does not know the handle (any more); nothing was done."""


@dataclass(slots=True)
class Reply:
    """A worker's answer: msgpack, and what came beside it. Whoever takes it owns ``fd``."""

    body: msgspec.Raw | bytes
    fd: int | None = None
    in_memory: bool = False


@dataclass(slots=True, eq=False)
class Pending:
    """A call that is not answered yet. ``changes``: it may have had its effect even so."""

    future: asyncio.Future[Any]
    until: float
    changes: bool
    kind: object
    lane: Lane | None


class PacketSocket:
    """Non-blocking packets on the running loop.

    ``on_packet`` tells whether more are expected, and may raise BrokenPeer.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_packet: Callable[[memoryview, int | None], bool],
        on_end: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._on_packet = on_packet
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[tuple[bytes, int | None]] = deque()
        sock.setblocking(False)
        self._fd = sock.fileno()
        self._loop.add_reader(self._fd, self._read)

    @property
    def closed(self) -> bool:
        """Nothing can be sent any more."""
        return self._fd < 0

    def send(self, packet: bytes, fd: int | None = None) -> None:
        """Send now, or when the socket can; ``fd`` is closed once sent. Never waits."""
        if self._outbox:
            self._outbox.append((packet, fd))
            return
        try:
            packets.send(self._sock, packet, fd)
        except BlockingIOError:
            self._outbox.append((packet, fd))
            self._loop.add_writer(self._fd, self._write)
            return
        except OSError:
            self._loop.call_soon(self.close)  # the caller is still in the middle of its request
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close and tell ``on_end``, once."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._fd = -1
        self._sock.close()
        for _, fd in self._outbox:
            if fd is not None:
                os.close(fd)
        self._outbox.clear()
        self._on_end()

    def _write(self) -> None:
        try:
            while self._outbox:
                packet, fd = self._outbox[0]
                packets.send(self._sock, packet, fd)
                self._outbox.popleft()
                if fd is not None:
                    os.close(fd)
            self._loop.remove_writer(self._fd)
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def _read(self) -> None:
        try:
            for _ in range(MAX_PACKETS):
                received = _receiver.receive(self._sock, packets.NOW)
                if received is None:
                    self.close()
                    return
                if not self._on_packet(*received):
                    return
        except BlockingIOError:
            return
        except (OSError, BrokenPeer) as error:
            if not isinstance(error, ConnectionError):
                log.error("peer broke the protocol", extra={"reason": str(error)})  # noqa: TRY400
            self.close()


class Channel:
    """A front's channel to one account's worker."""

    def __init__(self, sock: socket.socket, on_end: Callable[[Channel], None], places: int = 16) -> None:
        """``places``: calls of one export at once; the worker has as many threads for each."""
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._places = places
        self._lanes: dict[str, Lane] = {}
        self._pending: dict[int, Pending] = {}
        self._given_up: dict[int, Pending] = {}  # their threads still wait: they keep their places
        self._calls = 0
        self._leaving = False
        self._packets = PacketSocket(sock, self._answered, self._ended)

    @property
    def usable(self) -> bool:
        """New requests may be sent."""
        return not self._leaving and not self._packets.closed

    async def call(
        self,
        kind: Callable[..., messages.Request],
        handle: int,
        *arguments: object,
        deadline_s: float,
        changes: bool,
        body: int | None = None,
        export: str | None = None,
    ) -> Reply:
        """Send a request and await its answer.

        Raises what the worker raised; StaleHandle; Busy with too much in flight; Unavailable when the
        ``export`` hangs; Unavailable, or UnknownOutcome for what ``changes`` something, when the answer
        does not come.
        """
        lane = None
        if export is not None:
            lane = self._lanes.get(export)
            if lane is None:
                lane = self._lanes[export] = Lane(export, self._places)
            deadline_s = await lane.enter(kind, time.monotonic(), deadline_s)
        if len(self._pending) >= MAX_PENDING or self._packets.closed:
            _close(body)
            if lane is not None:
                lane.leave(kind, time.monotonic())
            if self._packets.closed:
                raise Unavailable("the account's worker ended")
            raise Busy("too many calls for one account", retry_after_s=1.0)
        self._calls += 1
        call = self._calls
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._pending[call] = Pending(future, time.monotonic() + deadline_s, changes, kind, lane)
        self._packets.send(encode(kind(call, handle, *arguments)), body)
        try:
            return await future
        except asyncio.CancelledError:
            _discard(future)
            raise

    def expire(self, now: float) -> None:
        """Give up calls whose time is over (``time.monotonic()``); a late answer is dropped."""
        for call, pending in list(self._pending.items()):
            if pending.until < now:
                del self._pending[call]
                if pending.lane is not None:
                    self._given_up[call] = pending
                _fail(pending, "the account's worker did not answer in time")
        for lane in self._lanes.values():
            lane.refuse_waiting(now)

    def silent(self, now: float) -> dict[str, float]:
        """Export → for how many seconds its file system has answered nothing."""
        return {export: lane.silent_s(now) for export, lane in self._lanes.items()}

    def close(self) -> None:
        """Close now; what is pending gets an error."""
        self._packets.close()

    def _answered(self, packet: memoryview, fd: int | None) -> bool:
        try:
            message = _decode_reply(packet)
        except BrokenPeer:
            _close(fd)
            raise
        if isinstance(message, messages.Goodbye):
            _close(fd)
            self._leaving = True
        else:
            self._settle(message, fd)
        if self._leaving and not self._pending:
            self._packets.close()
            return False
        return bool(self._pending)

    def _settle(self, message: messages.Done | messages.Failed | messages.Stale, fd: int | None) -> None:
        pending = self._pending.pop(message.call, None)
        answered = pending or self._given_up.pop(message.call, None)
        if answered is not None and answered.lane is not None:
            answered.lane.leave(answered.kind, time.monotonic())
        wants_fd = isinstance(message, messages.Done) and message.carries is not Carries.NOTHING
        if wants_fd != (fd is not None) or (fd is not None and not _is_regular(fd)):
            _close(fd)
            if pending is not None:
                _fail(pending, "the worker sent something else than a file")
            raise BrokenPeer("descriptor is missing, unasked for, or no regular file")
        if pending is None or pending.future.done():
            _close(fd)
        elif isinstance(message, messages.Done):
            # the packet's buffer is used again: a copy that outlives it
            body = bytes(message.body)
            pending.future.set_result(Reply(body, fd, message.carries is Carries.BODY))
        elif isinstance(message, messages.Failed):
            pending.future.set_exception(from_wire(message.failure))
        else:
            pending.future.set_exception(StaleHandle())

    def _ended(self) -> None:
        lost, self._pending = self._pending, {}
        for pending in lost.values():
            _fail(pending, "the account's worker ended")
        for lane in self._lanes.values():
            lane.close("the account's worker ended")
        self._on_end(self)


def _fail(pending: Pending, why: str) -> None:
    if pending.future.done():
        return
    error: EdgeError = Unavailable(why)
    if pending.changes:
        error = UnknownOutcome("it may or may not have been done", detail=why)
    pending.future.set_exception(error)


def _discard(future: asyncio.Future[Reply]) -> None:
    """A cancelled caller takes nothing: close what had come for it already."""
    if future.done() and not future.cancelled() and future.exception() is None:
        _close(future.result().fd)


def _is_regular(fd: int) -> bool:
    facts = statx.known(fd)
    return facts is not None and facts.regular


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
