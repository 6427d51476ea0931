"""A transport over a socket that stays ours: bytes are taken from the kernel and given to it at once.

What loops offer hides the socket behind layers of their own. Here reading can be turned round: a body is
pulled straight into the blocks it will be written from (``receive_into``), and what is sent goes to the
kernel in the caller's own turn; only what it does not take is kept. Readiness by add_reader and add_writer.

libuv tells of an error on a socket only once: whoever is told that it is readable reads until there is
nothing more, or comes back by itself.
Benches: tests/bench/storage_large.py, storage_small.py, jobs_accept.py.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio.trsock import TransportSocket
from collections import deque
from collections.abc import Callable
from typing import Any, cast

PIECE = 64 * 1024  # bytes given to a protocol at once
TURN = 256 * 1024  # bytes one connection may bring before others have their turn
SENT = 1 << 20  # bytes it may take: a peer as fast as we are would never make its writer wait
_BUSY = (BlockingIOError, InterruptedError)
_buffer = bytearray(PIECE)  # of the one loop of a process: emptied before anything else runs
_view = memoryview(_buffer)


class Stream(asyncio.Transport):
    """A connected, non-blocking socket without encryption. ``begin`` starts it."""

    def __init__(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._protocol = protocol
        self._out: deque[bytes] = deque()  # not taken by the kernel yet
        self._out_size = 0
        self._high = self._low = 0
        self._writing_paused = False
        self._sent = 0  # since the writer had to wait last
        self._eof_wanted = False  # write_eof: after all that waits
        self._paused = True  # not reading for the protocol
        self._ended = False  # the peer sent its end
        self._closing = False
        self._lost = False  # the protocol was told, or is about to be
        self._on_readable: Callable[[], None] | None = None
        self._on_writable: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None  # of ``readable``

    def begin(self) -> None:
        """Tell the protocol, and read."""
        self._protocol.connection_made(self)
        if not self._closing:
            self.resume_reading()

    # --- asyncio.BaseTransport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``socket``, ``peername`` and ``sockname``, as every transport has them."""
        try:
            if name == "socket":
                return TransportSocket(self._sock)
            if name == "peername":
                return self._sock.getpeername()
            if name == "sockname":
                return self._sock.getsockname()
        except OSError:
            pass
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Send what waits, then close."""
        if self._closing:
            return
        self._closing = True
        self._paused = True
        self._watch_reading(None)
        self._wake()
        if not self._out:
            self._finish()

    def abort(self) -> None:
        """Close at once, without a good end: what waits is dropped."""
        self._fail(None)

    # --- reading

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        if self._closing or self._paused:
            return
        self._paused = True
        self._watch_reading(None)

    def resume_reading(self) -> None:
        if self._closing or not self._paused:
            return
        self._paused = False
        self._loop.call_soon(self._read)  # also what came while nobody listened

    def _read(self) -> None:
        """Give the protocol what has come, within a turn."""
        left = TURN
        while not self._paused and not self._closing:
            if left <= 0:
                self._watch_reading(None)
                self._loop.call_soon(self._read)
                return
            try:
                count = self._take(_view)
            except OSError as error:
                self._fail(error)
                return
            if count is None:
                self._watch_reading(self._read)
                return
            if count == 0:
                self._end()
                return
            left -= count
            try:
                self._protocol.data_received(bytes(_view[:count]))
            except Exception as error:  # as every transport: the connection ends, the others go on
                self._fail(error)
                context = {"message": "data_received failed", "exception": error, "transport": self}
                self._loop.call_exception_handler(context)
                return

    def _end(self) -> None:
        self._ended = True
        self._watch_reading(None)
        if not self._protocol.eof_received():
            self.close()

    def receive_into(self, view: memoryview) -> int | None:
        """Bytes put into ``view``; 0 at the end, None when there are none now (see ``readable``).

        For who has called ``pause_reading``. Raises OSError when the connection is broken or closed.
        """
        if self._closing:
            raise ConnectionResetError("the connection is closed")
        try:
            return self._take(view)
        except OSError as error:
            self._fail(error)
            raise

    async def readable(self) -> None:
        """Until ``receive_into`` has something to say."""
        if self._closing:
            return
        self._waiter = self._loop.create_future()
        self._watch_reading(self._tell_reader)  # and goes on watching: two system calls saved a time
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _tell_reader(self) -> None:
        if self._waiter is None:  # busy with what it has, or gone
            self._watch_reading(None)
        else:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, view: memoryview) -> int | None:
        """From the kernel: bytes, 0 at the end, None when it has none now. Raises OSError."""
        try:
            return self._sock.recv_into(view)
        except _BUSY:
            return None

    # --- writing

    def get_write_buffer_size(self) -> int:
        return self._out_size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Bytes waiting above which the protocol is paused, and down to which it is not resumed."""
        self._high = (0 if low is None else 4 * low) if high is None else high
        self._low = self._high // 4 if low is None else low
        if not 0 <= self._low <= self._high:
            raise ValueError("0 <= low <= high")

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """No more will be written; reading goes on."""
        if self._closing or self._eof_wanted:
            return
        self._eof_wanted = True
        if not self._out:
            self._send_eof()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it; what the kernel does not take now is kept and sent when it does."""
        if self._closing or self._eof_wanted or not data:
            return
        if not self._out:
            try:
                sent = self._give(data)
            except OSError as error:
                self._fail(error)
                return
            if sent == len(data):
                self._sent += sent
                if self._sent >= SENT and not self._writing_paused:
                    self._pause_writing()
                    self._loop.call_soon(self._resume_writing)
                return
            data = bytes(memoryview(data)[sent:]) if sent else data
            self._watch_writing(self._flush)
        self._out.append(bytes(data))
        self._out_size += len(data)
        if self._out_size > self._high and not self._writing_paused:
            self._pause_writing()

    def _pause_writing(self) -> None:
        self._writing_paused, self._sent = True, 0
        self._protocol.pause_writing()

    def _resume_writing(self) -> None:
        if self._writing_paused and self._out_size <= self._low and not self._lost:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _flush(self) -> None:
        """The socket takes more."""
        turn = TURN
        while self._out and turn > 0:
            data = self._out[0]
            try:
                sent = self._give(data)
            except OSError as error:
                self._fail(error)
                return
            self._out_size -= sent
            turn -= sent
            if sent < len(data):
                if sent:
                    self._out[0] = data[sent:]
                break
            self._out.popleft()
        self._resume_writing()
        if not self._out:  # the protocol may have written more
            self._watch_writing(None)
            if self._closing:
                self._finish()
            elif self._eof_wanted:
                self._send_eof()

    def _give(self, data: bytes | bytearray | memoryview) -> int:
        """To the kernel: how much it took. Raises OSError."""
        try:
            return self._sock.send(data)
        except _BUSY:
            return 0

    def _send_eof(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(error)

    # --- the end

    def _finish(self) -> None:
        """All is sent and nobody wants more."""
        self._fail(None)

    def _fail(self, error: Exception | None) -> None:
        """Stop at once; the protocol hears of it in a turn of its own."""
        self._closing = self._paused = True
        self._watch_reading(None)
        self._watch_writing(None)
        self._out.clear()
        self._out_size = 0
        self._wake()
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._tell, error)

    def _tell(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._sock.close()

    # --- readiness

    def _watch_reading(self, call: Callable[[], None] | None) -> None:
        if call == self._on_readable:
            return
        self._on_readable = call
        if call is None:
            self._loop.remove_reader(self._fd)
        else:
            self._loop.add_reader(self._fd, call)

    def _watch_writing(self, call: Callable[[], None] | None) -> None:
        if call == self._on_writable:
            return
        self._on_writable = call
        if call is None:
            self._loop.remove_writer(self._fd)
        else:
            self._loop.add_writer(self._fd, call)
