"""The ban feed: what identity tells every front and accountd, at once and without being asked.

Wire form: a unix stream socket that only identity writes to. A frame is a 4-byte big-endian length
and that many bytes of msgpack: one array of messages. On connecting a subscriber receives ``Begin``,
then the whole state (``Banned``, ``JobEnded``), then ``Loaded``; afterwards each change as it is made
and a ``Heartbeat`` at least every 250 ms. Who cannot keep up is cut off and subscribes again.

``sent_at`` is CLOCK_MONOTONIC, which all processes of one machine share: messages that waited in a
socket buffer do not look fresh.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edged.errors import Unavailable
from edged.identity.grants import Ban
from edged.identity.words import JobId, Principal

HEARTBEAT_S = 0.25
STALE_S = 1.0  # DESIGN §1: a front cut off for more than a second refuses new work
FRAME_BYTES = 1 << 20
SOCKET = "identity-feed.sock"  # below [runtime] run


class Message(msgspec.Struct, frozen=True, tag=True):
    """One thing told to every subscriber."""


class Begin(Message, frozen=True):
    """What was known before is void: the state follows."""

    sent_at: float


class Loaded(Message, frozen=True):
    """The state is complete. Only from here on may a grant be honoured."""

    sent_at: float


class Heartbeat(Message, frozen=True):
    """Nothing new, and identity lives."""

    sent_at: float


class Banned(Message, frozen=True):
    """A ban holds from now on."""

    ban: Ban


class BanLifted(Message, frozen=True):
    """The ban with this id holds no more."""

    id: str


class JobEnded(Message, frozen=True):
    """The engine reported this job's end: its token is dead, its tunnels close."""

    job: JobId


AnyMessage = Begin | Loaded | Heartbeat | Banned | BanLifted | JobEnded

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[AnyMessage]).decode


def frame(messages: Iterable[AnyMessage]) -> bytes:
    """The wire form of some messages, as one frame."""
    payload = _encode(list(messages))
    return len(payload).to_bytes(4, "big") + payload


class Frames:
    """Puts frames together again from whatever pieces the socket gives."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[AnyMessage]:
        """The messages that ``data`` completes. Raises Unavailable when this is not the feed."""
        self._held += data
        found: list[AnyMessage] = []
        while len(self._held) >= 4:
            size = int.from_bytes(self._held[:4], "big")
            if size > FRAME_BYTES:
                raise Unavailable("the ban feed is broken", detail=f"frame of {size} bytes")
            if len(self._held) < 4 + size:
                break
            try:
                found += _decode(self._held[4 : 4 + size])
            except msgspec.MsgspecError as error:
                raise Unavailable("the ban feed is broken", detail=str(error)) from error
            del self._held[: 4 + size]
        return found


class Revocations:
    """The state that the messages add up to. Pure: give it every message, ask it before each grant."""

    def __init__(self) -> None:
        self._bans: dict[str, Ban] = {}
        self._loaded = False
        self._heard_at = float("-inf")

    def apply(self, message: AnyMessage) -> None:
        """Take one message into account."""
        match message:
            case Begin():
                self._bans.clear()
                self._loaded = False
            case Loaded(sent_at):
                self._loaded = True
                self._heard_at = sent_at
            case Heartbeat(sent_at):
                self._heard_at = sent_at
            case Banned(ban):
                self._bans[ban.id] = ban
            case BanLifted(ban_id):
                self._bans.pop(ban_id, None)
            case JobEnded():
                pass  # an event for whoever holds the job's tunnels; no state here

    def usable(self, monotonic: float) -> bool:
        """Whether the state is complete and at most ``STALE_S`` old (``time.monotonic()``)."""
        return self._loaded and monotonic - self._heard_at <= STALE_S

    def ban_on(self, principal: Principal, now: float) -> Ban | None:
        """The first ban that covers ``principal`` at ``now`` (Unix seconds)."""
        for ban in self._bans.values():
            if (ban.expires_at is None or ban.expires_at > now) and ban.covers(principal):
                return ban
        return None

    def bans(self) -> tuple[Ban, ...]:
        """All bans known, expired ones included."""
        return tuple(self._bans.values())


class FeedReader:
    """The feed for a ``selectors`` loop: register it, and call ``read`` when it is readable.

    Raises Unavailable from the constructor when identity is not there, from ``read`` when the
    connection ended; make a new one then. ``close`` may be called twice.
    """

    def __init__(self, path: Path, *, timeout_s: float = 1.0) -> None:
        self._frames = Frames()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(path))
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            raise Unavailable("identity does not answer", detail=f"{path}: {error}") from error

    def fileno(self) -> int:
        """For ``selector.register(reader, EVENT_READ)``."""
        return self._socket.fileno()

    def read(self) -> list[AnyMessage]:
        """What has arrived, never waiting; empty when only a part of a frame did."""
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError as error:
            raise Unavailable("the ban feed ended", detail=str(error)) from error
        if not data:
            raise Unavailable("the ban feed ended")
        return self._frames.feed(data)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
