"""A worker: is one account, and serves the channels that accountd gave to fronts.

The main thread speaks with accountd. Each channel has threads that wait in recvmsg, take one packet
and answer it themselves: no poll and no hand-over between threads, the kernel wakes exactly one. One
thread is fastest while calls are quick, because threads would only fight for the interpreter; the main
thread adds more as soon as calls are slow (tests/bench/accounts_open.py holds this).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from edged.accounts import messages, packets
from edged.accounts.faults import of_os, to_wire
from edged.accounts.messages import Carries, Request, Start, WorkerKind, encode
from edged.accounts.packets import BrokenPeer
from edged.errors import Denied, EdgeError, Unavailable, UnknownOutcome
from edged.identity.grants import Ban, Grant
from edged.logs import get_logger

log = get_logger("edged.worker")

HANDLES_PER_CHANNEL = 16384
CHANNELS_OF_A_USER = 128  # as many as accountd takes connections of one: each has a thread
INLINE_BYTES = 48 << 10
SEND_S = 10.0
SLOW_S = 0.002  # a call that takes longer waited for a disk
WATCH_S = 0.02
QUIET_S = 1.0
LAST_WORDS_S = 60.0

_to_worker: Callable[[memoryview], messages.ToWorker] = messages.decoder(messages.ToWorker)


@dataclass(slots=True)
class Answer:
    """What a call gives: a value for the wire, and perhaps an open file, which the sender closes."""

    value: object
    fd: int | None = None


class Calls(Protocol):
    """The calls of one kind of worker."""

    decode: Callable[[memoryview], Request]

    def answer(self, grant: Grant, request: Request, body: int | None) -> Answer:
        """Do what is asked, if ``grant`` allows it. Raises EdgeError or OSError."""
        ...


@dataclass(slots=True, eq=False)
class Channel:
    """One front's way to this account. Handles of other channels do not exist here."""

    number: int
    sock: socket.socket
    front: int  # the front's uid
    grants: dict[int, Grant] = field(default_factory=dict)
    threads: int = 0
    idle: int = 0
    served: int = 0
    slow: int = 0
    seen: tuple[int, int] = (0, 0)  # served and slow when the main thread last looked


class Worker:
    """See the module. ``serve`` returns when the worker is to end."""

    def __init__(self, start: Start, control: socket.socket, calls: Calls) -> None:
        self._start = start
        places = len(start.exports) + bool(start.sessions) if start.kind is WorkerKind.FILES else 1
        self._most_threads = start.threads * max(1, places)
        self._control = control
        self._calls = calls
        self._channels: dict[int, Channel] = {}
        self._receiver = packets.Receiver()
        self._lock = threading.Lock()
        self._busy = 0
        self._dozing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._last_use = time.monotonic()

    def serve(self) -> None:
        """Until accountd says End or is gone; then finishes what is running."""
        packets.send(self._control, encode(messages.Ready(os.getpid())))
        try:
            while self._obey():
                pass
        except (OSError, BrokenPeer):
            log.exception("control broken")
        self._last_words()

    # --- accountd

    def _obey(self) -> bool:
        """One message of accountd; False when it is time to end."""
        watched = [self._control.fileno(), self._wake]
        if watched[0] not in select.select(watched, [], [], self._patience_s())[0]:
            self._look_after_threads()
            if not self._busy and time.monotonic() - self._last_use > self._start.idle_s:
                packets.send(self._control, encode(messages.Idle()))
            return True
        received = self._receiver.receive(self._control)
        if received is None:
            return False
        data, fd = received
        match _to_worker(data):
            case messages.Add(call, channel, handle, grant, front):
                self._add(channel, handle, grant, front, fd)
                packets.send(self._control, encode(messages.Added(call)))
            case messages.Drop(channel, handle):
                if (found := self._channels.get(channel)) is not None:
                    found.grants.pop(handle, None)
            case messages.Withdraw(ban):
                self._withdraw(ban)
            case messages.End():
                return False
        return True

    def _add(self, number: int, handle: int, grant: Grant, front: int, fd: int | None) -> None:
        if fd is not None:
            channel = self._open_channel(number, front, socket.socket(fileno=fd))
        elif (found := self._channels.get(number)) is not None:
            channel = found
        else:
            return  # the front closed it meanwhile
        if len(channel.grants) >= HANDLES_PER_CHANNEL:
            _forget_expired(channel.grants)
        if len(channel.grants) < HANDLES_PER_CHANNEL:
            channel.grants[handle] = grant
        self._last_use = time.monotonic()

    def _open_channel(self, number: int, front: int, sock: socket.socket) -> Channel:
        """A front that asks for more channels than it can have connections loses its oldest."""
        # a front that does not read may hold a thread this long, then its channel closes
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(SEND_S), 0))
        own = [channel for channel in list(self._channels.values()) if channel.front == front]
        if len(own) >= CHANNELS_OF_A_USER:
            self._close(own[0])
        channel = self._channels[number] = Channel(number, sock, front)
        with self._lock:
            self._add_thread(channel)
        return channel

    def _withdraw(self, ban: Ban) -> None:
        """Forget every grant of whom the ban covers: what is left of it, accountd gives again."""
        for channel in list(self._channels.values()):
            for handle, grant in list(channel.grants.items()):
                if grant.principal is not None and ban.covers(grant.principal):
                    channel.grants.pop(handle, None)

    def _last_words(self) -> None:
        """Tell the fronts, let calls finish; fronts close their channels when the last is answered."""
        for channel in list(self._channels.values()):
            try:
                packets.send(channel.sock, encode(messages.Goodbye()), flags=packets.NOW)
            except OSError:
                self._close(channel)
            channel.grants.clear()  # we hear of no more bans: who still asks here is sent to accountd
        deadline = time.monotonic() + LAST_WORDS_S
        while (self._channels or self._busy) and time.monotonic() < deadline:
            time.sleep(0.05)

    # --- fronts

    def _serve_channel(self, channel: Channel) -> None:
        """One thread of a channel: until the front closes it, or breaks the protocol."""
        try:
            while self._take(channel):
                pass
        except (OSError, BrokenPeer) as error:
            if not isinstance(error, ConnectionError):
                log.error("channel broken", extra={"reason": str(error)})  # noqa: TRY400
        except Exception:
            log.exception("call failed unexpectedly")
        finally:
            self._close(channel)

    def _take(self, channel: Channel) -> bool:
        """Await one packet and answer it; False at the end."""
        received = self._receiver.receive(channel.sock)
        if received is None:
            return False
        data, body = received
        with self._lock:
            self._busy += 1
            channel.idle -= 1
        if self._dozing:
            self._dozing = False
            os.eventfd_write(self._wake, 1)
        began = time.monotonic()
        try:
            self._reply(channel, self._calls.decode(data), body)
        finally:
            if body is not None:
                os.close(body)
            ended = self._last_use = time.monotonic()
            with self._lock:
                self._busy -= 1
                channel.idle += 1
                channel.served += 1
                channel.slow += ended - began > SLOW_S
        return True

    def _patience_s(self) -> float:
        """How long the main thread may wait: short while there are calls to watch, else until woken."""
        self._dozing = True
        if self._busy or time.monotonic() - self._last_use < min(QUIET_S, self._start.idle_s):
            self._dozing = False
            return WATCH_S
        return self._start.idle_s / 4

    def _look_after_threads(self) -> None:
        """More threads where all are in use and calls are slow, or none ended since the last look.

        As many for each export, so that one whose file server hangs leaves the others theirs (``lanes``).
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        with self._lock:
            for channel in self._channels.values():
                served, slow = channel.seen
                if channel.idle == 0 and (channel.served == served or channel.slow > slow):
                    for _ in range(min(channel.threads, self._most_threads - channel.threads)):
                        self._add_thread(channel)
                channel.seen = (channel.served, channel.slow)

    def _add_thread(self, channel: Channel) -> None:
        channel.threads += 1
        channel.idle += 1
        threading.Thread(target=self._serve_channel, args=(channel,), daemon=True).start()

    def _reply(self, channel: Channel, request: Request, body: int | None) -> None:
        grant = channel.grants.get(request.handle)
        if grant is None:
            packets.send(channel.sock, encode(messages.Stale(request.call)))
            return
        try:
            _require_live(grant)
            answer = self._calls.answer(grant, request, body)
        except EdgeError as error:
            packets.send(channel.sock, _failed(request.call, error))
        except OSError as error:
            packets.send(channel.sock, _failed(request.call, of_os(error)))
        except Exception:  # a mistake in a verb must not take the channel's other calls with it
            log.exception("call failed unexpectedly")
            packets.send(channel.sock, _failed(request.call, UnknownOutcome("the call failed unexpectedly")))
        else:
            _send_answer(channel.sock, request.call, answer)

    def _close(self, channel: Channel) -> None:
        """Take the channel out and wake its other threads. The socket closes with the last of them."""
        with self._lock:
            if self._channels.get(channel.number) is channel:
                del self._channels[channel.number]
                with contextlib.suppress(OSError):
                    channel.sock.shutdown(socket.SHUT_RDWR)
        channel.grants.clear()


def _require_live(grant: Grant) -> None:
    if grant.expires_at <= time.time():
        raise Denied("grant expired")


def _failed(call: int, error: EdgeError) -> bytes:
    packet = encode(messages.Failed(call, to_wire(error)))
    if len(packet) <= INLINE_BYTES:
        return packet
    return encode(
        messages.Failed(call, to_wire(Unavailable(error.message[:1024], detail=error.detail[:1024])))
    )


def _send_answer(sock: socket.socket, call: int, answer: Answer) -> None:
    try:
        body = encode(answer.value)
        if answer.fd is not None:
            packets.send(sock, encode(messages.Done(call, Carries.FILE, msgspec.Raw(body))), answer.fd)
        elif len(body) <= INLINE_BYTES:
            packets.send(sock, encode(messages.Done(call, Carries.NOTHING, msgspec.Raw(body))))
        else:
            _send_body(sock, call, body)
    finally:
        if answer.fd is not None:
            os.close(answer.fd)


def _send_body(sock: socket.socket, call: int, body: bytes) -> None:
    fd = packets.in_memory(body)
    try:
        packets.send(sock, encode(messages.Done(call, Carries.BODY, msgspec.Raw(b"\xc0"))), fd)
    finally:
        os.close(fd)


def _forget_expired(grants: dict[int, Grant]) -> None:
    now = time.time()
    for handle in [handle for handle, grant in list(grants.items()) if grant.expires_at <= now]:
        grants.pop(handle, None)
