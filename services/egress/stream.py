"""One direction of a tunnel: copied at first, spliced once it turns out to be bulk."""

from __future__ import annotations

import os
import socket

from services.egress.limits import Meter
from services.egress.pipes import Pipe, Pipes

BULK = 256 * 1024  # bytes after which a direction gets a pipe
TURN = 8 << 20  # bytes one direction may move before others have their turn
_SPLICE = 4 << 20  # asked for at once; the pipe's slots bound what comes
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

# One buffer serves every copying stream: between two turns nothing stays in it.
_BUFFER = bytearray(128 * 1024)
_VIEW = memoryview(_BUFFER)


class Stream:
    """Bytes from ``source`` to ``sink``. ``pump`` is called whenever one of them may be ready.

    ``moved`` counts bytes taken from the source. ``limit``: stop after so many (None: at its end).
    """

    __slots__ = (
        "_held", "_pipe", "_pipes", "ended", "finished", "last_edge",
        "limit", "meter", "moved", "sink", "source", "starved",
    )  # fmt: skip

    def __init__(self, source: socket.socket, sink: socket.socket, pipes: Pipes, meter: Meter | None) -> None:
        self.source, self.sink, self.meter = source, sink, meter
        self._pipes = pipes
        self._pipe: Pipe | None = None
        self._held: memoryview | None = None
        self.moved = 0
        self.limit: int | None = None
        self.ended = False  # nothing more comes from the source
        self.finished = False  # and all of it has left
        self.last_edge = False  # the source's end was signalled: no further event will tell
        self.starved = False  # waits for its meter, not for a socket

    @property
    def blocked(self) -> bool:
        """Whether bytes wait for the sink."""
        return self._held is not None or (self._pipe is not None and self._pipe.held > 0)

    def preset(self, data: bytes) -> None:
        """Bytes to send before anything is read; they were taken from the source already."""
        if data:
            self._held = memoryview(data)
            self._count(len(data))

    def pump(self) -> bool:
        """Move what can be moved. True when there is more to do at once. Raises OSError."""
        if self.finished:
            return False
        return self._copy() if self._pipe is None else self._splice(self._pipe)

    def flush(self) -> bool:
        """Send what is held, read nothing. True when there is more to do at once. Raises OSError."""
        if self.limit is not None or self.meter is not None:
            return self.pump()
        if self._held is not None:
            self._send_held()
        return False

    def release(self) -> None:
        """Give the pipe back."""
        if self._pipe is not None:
            self._pipes.give(self._pipe)
            self._pipe = None

    def rest(self) -> None:
        """Give an empty pipe back while nothing flows."""
        if self._pipe is not None and not self._pipe.held and not self.finished:
            self.release()

    def _copy(self) -> bool:
        budget = TURN
        while budget > 0:
            if self._held is not None and not self._send_held():
                return False
            if self.ended:
                return self._finish()
            want = self._want(len(_BUFFER))
            if want <= 0:
                return False
            try:
                count = self.source.recv_into(_BUFFER, want)
            except BlockingIOError:
                return False
            if count == 0:
                self.ended = True
                continue
            self._count(count)
            budget -= count
            try:
                sent = self.sink.send(_VIEW[:count])
            except BlockingIOError:
                sent = 0
            if sent < count:
                self._held = memoryview(bytes(_VIEW[sent:count]))
            elif self.moved >= BULK and self.limit is None and (pipe := self._pipes.take()) is not None:
                self._pipe = pipe
                return self._splice(pipe)
            elif count < want and not self.last_edge:
                return False  # drained (epoll(7): a short read tells); new bytes are a new edge
        return True

    def _send_held(self) -> bool:
        assert self._held is not None
        try:
            sent = self.sink.send(self._held)
        except BlockingIOError:
            return False
        self._held = self._held[sent:] if sent < len(self._held) else None
        return self._held is None

    def _splice(self, pipe: Pipe) -> bool:
        source, sink = self.source.fileno(), self.sink.fileno()
        budget = TURN
        try:
            while budget > 0:
                if pipe.held:
                    pipe.held -= os.splice(pipe.read_fd, sink, pipe.held, flags=_FLAGS)
                    continue
                if self.ended:
                    return self._finish()
                want = self._want(_SPLICE)
                if want <= 0:
                    return False
                count = os.splice(source, pipe.write_fd, want, flags=_FLAGS)
                if count == 0:
                    self.ended = True
                    continue
                pipe.held = count
                self._count(count)
                budget -= count
        except BlockingIOError:
            return False
        return True

    def _want(self, most: int) -> int:
        if self.limit is not None:
            most = min(most, self.limit - self.moved)
            if most <= 0:  # no half-close: some origins take it for the client's going away
                self.finished = True
                return 0
        if self.meter is None:
            return most
        granted = self.meter.allowance(most)
        self.starved = granted <= 0
        return granted

    def _count(self, count: int) -> None:
        self.moved += count
        if self.meter is not None:
            self.meter.moved(count)

    def _finish(self) -> bool:
        self.finished = True
        self.release()
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:  # the other side is gone already: its own direction will say so
            return False
        return False
