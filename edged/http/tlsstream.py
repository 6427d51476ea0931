"""TLS between the socket and OpenSSL, through one buffer that all connections of a process share.

OpenSSL on a socket takes two reads a record, and one write: for long bodies that costs more than the cipher. Here
the kernel fills a large buffer, records are opened straight into the block they belong in, and what is sealed leaves
in one system call. What stays with a connection is the record that has not come whole yet. A process with many
connections moves less at once, because OpenSSL's memory BIOs never give back what they once held.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any, ClassVar

from edged.http.stream import Stream
from edged.http.turns import Turns

FAREWELL_S = 5.0  # for the peer to answer our close_notify
RECORD = 17 * 1024  # on the wire, with its header and tag: RFC 8446 §5.2
LARGE = 64 * 1024  # bytes moved through OpenSSL at once ...
MANY = 128  # ... up to so many connections, then a record
_sealed = memoryview(bytearray(LARGE))  # of the one loop of a process: emptied before anything else runs
_BUSY = (BlockingIOError, InterruptedError)


class TlsStream(Stream):
    """Call ``handshake`` before ``begin``."""

    _open: ClassVar[int] = 0  # connections of this process

    def __init__(
        self,
        sock: socket.socket,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        server_name: str | None = None,
        farewell_s: float = FAREWELL_S,
    ) -> None:
        """``server_name``: we are the client, and this is whom the certificate must name."""
        super().__init__(sock, protocol)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_name is None,
            server_hostname=server_name,
        )
        self._next: OSError | int | None = None  # what the next read finds: an error, or 0 for the end
        self._last_words = b""
        self._farewell_s = farewell_s
        self._bound: asyncio.TimerHandle | None = None
        TlsStream._open += 1

    def __del__(self) -> None:
        TlsStream._open -= 1

    async def handshake(self, within_s: float, turns: Turns | None = None, source: str = "") -> None:
        """Raises OSError (ssl.SSLError is one) or TimeoutError; then the socket is closed.

        Each step, which may cost a signature, waits for the turn of its ``source``.
        """
        try:
            async with asyncio.timeout(within_s):
                while not await self._step(turns, source):
                    await self._ready(self._watch_reading)
                    if self._receive(LARGE) == 0:
                        raise ConnectionResetError("the peer left in the handshake")  # noqa: TRY301
        except BaseException:
            self._sock.close()
            raise

    async def _step(self, turns: Turns | None, source: str) -> bool:
        """Answer what has come; whether that was all."""
        if turns is not None:
            await turns.turn(source)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            ended = False
        except ssl.SSLError:
            with suppress(OSError):
                self._sock.send(self._outgoing.read())  # the alert that tells why
            raise
        else:
            ended = True
        said = memoryview(self._outgoing.read())
        while said:
            try:
                said = said[self._sock.send(said) :]
            except _BUSY:
                await self._ready(self._watch_writing)
        return ended

    async def _ready(self, watch: Any) -> None:
        ready = asyncio.Event()
        watch(ready.set)
        try:
            await ready.wait()
        finally:
            watch(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Also ``ssl_object``, ``sslcontext``, ``peercert`` (as ssl.SSLObject.getpeercert) and ``cipher``."""
        if name == "sslcontext":
            return self._tls.context
        if name == "ssl_object":
            return self._tls
        if name == "peercert":
            return self._tls.getpeercert()
        if name == "cipher":
            return self._tls.cipher()
        return super().get_extra_info(name, default)

    # --- reading

    def _take(self, view: memoryview) -> int | None:
        """What the records hold that have come."""
        if self._next is not None:
            return self._met(self._next)
        got, room = 0, len(view)
        try:
            while got < room:
                try:
                    count = self._tls.read(room - got, view[got:])
                except ssl.SSLWantReadError:
                    if self._receive(room - got + RECORD) is None:
                        break
                    continue
                if not count:
                    self._next = 0
                    break
                got += count  # type: ignore[operator]
        except ssl.SSLEOFError:  # without close_notify: bodies have ends of their own
            self._next = 0
        except OSError as error:
            self._next = error
        if self._outgoing.pending:  # an answer to a key update, an alert
            super().write(self._outgoing.read())
        if got or self._next is None:
            return got or None
        return self._met(self._next)

    def _receive(self, most: int) -> int | None:
        """Sealed bytes from the kernel to OpenSSL; 0 at their end (then OpenSSL tells), None when there are none."""
        try:
            count = self._sock.recv_into(_sealed, min(most, LARGE if TlsStream._open <= MANY else RECORD))
        except _BUSY:
            return None
        if count:
            self._incoming.write(_sealed[:count])
        else:
            self._incoming.write_eof()
        return count

    @staticmethod
    def _met(found: OSError | int) -> int:
        if isinstance(found, OSError):
            raise found
        return found

    # --- writing

    def can_write_eof(self) -> bool:
        """TLS can only say that all is over (close_notify)."""
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("TLS has no half-close")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Seal it, and send that; what the kernel does not take now is kept and sent when it does."""
        if self._closing or not data:
            return
        view, most = memoryview(data), LARGE if TlsStream._open <= MANY else RECORD
        for start in range(0, len(view), most):
            try:
                self._tls.write(view[start : start + most])
            except ssl.SSLError as error:
                self._fail(error)
                return
            super().write(self._outgoing.read())

    # --- the end

    def _finish(self) -> None:
        """close_notify; then what still comes is dropped until the peer ends too: a reset could overtake our data."""
        if self._lost or self._bound is not None:
            return
        self._bound = self._loop.call_later(self._farewell_s, self._fail, None)
        with suppress(
            ssl.SSLError
        ):  # WANT_READ: it is sealed. Anything else: the peer talks on; the drain tells
            self._tls.unwrap()
        self._last_words = self._outgoing.read()
        self._part()

    def _part(self) -> None:
        try:
            self._last_words = self._last_words[self._sock.send(self._last_words) :]
        except _BUSY:
            pass
        except OSError:
            self._last_words = b""  # the peer is gone: the drain tells
        if self._last_words:
            self._watch_writing(self._part)
            return
        self._watch_writing(None)
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._watch_reading(self._drain)
        self._drain()

    def _drain(self) -> None:
        """What comes after our last word, unopened and within a turn."""
        for _ in range(4):
            try:
                if not self._sock.recv_into(_sealed):
                    break
            except _BUSY:
                return
            except OSError:
                break
        else:
            return
        self._fail(None)

    def _fail(self, error: Exception | None) -> None:
        if self._bound is not None:
            self._bound.cancel()
        super()._fail(error)
