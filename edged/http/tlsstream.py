"""TLS on the socket itself: OpenSSL takes records from the kernel and gives them to it.

The TLS of the loops goes through memory: a quarter of a megabyte of buffers a connection, and every byte
copied twice more. OpenSSL's own buffers are freed while they are empty (SSL_MODE_RELEASE_BUFFERS, which
Python sets). A write that does not fit is repeated with the same bytes (SSL_write(3)): ``Stream`` keeps them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any

from edged.http.stream import Stream
from edged.http.turns import Turns

FAREWELL_S = 5.0  # for the peer to answer our close_notify
_drained = memoryview(bytearray(16 * 1024))


class TlsStream(Stream):
    """Call ``handshake`` before ``begin``."""

    def __init__(
        self,
        sock: socket.socket,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        server_name: str | None = None,
        farewell_s: float = FAREWELL_S,
    ) -> None:
        """``server_name``: we are the client, and this is whom the certificate must name. Raises OSError."""
        self._tls = context.wrap_socket(
            sock,
            server_side=server_name is None,
            server_hostname=server_name,
            do_handshake_on_connect=False,
        )
        super().__init__(self._tls, protocol)
        self._read_wants_write = False  # a key update to be answered before more can be read
        self._next: OSError | int | None = None  # what the next read finds: an error, or 0 for the end
        self._farewell_s = farewell_s
        self._bound: asyncio.TimerHandle | None = None

    async def handshake(self, within_s: float, turns: Turns | None = None, source: str = "") -> None:
        """Raises OSError (ssl.SSLError is one) or TimeoutError; then the socket is closed.

        Each step, which may cost a signature, waits for the turn of its ``source``.
        """
        try:
            async with asyncio.timeout(within_s):
                while True:
                    if turns is not None:
                        await turns.turn(source)
                    try:
                        self._tls.do_handshake()
                    except ssl.SSLWantReadError:
                        await self._ready(self._watch_reading)
                    except ssl.SSLWantWriteError:
                        await self._ready(self._watch_writing)
                    else:
                        return
        except BaseException:
            self._tls.close()
            raise

    async def _ready(self, watch: Any) -> None:
        ready = asyncio.Event()
        watch(ready.set)
        try:
            await ready.wait()
        finally:
            watch(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Also ``ssl_object``, ``sslcontext``, ``peercert`` (as ssl.SSLSocket.getpeercert) and ``cipher``."""
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
        """As many records of at most 16 KiB as have come."""
        if self._next is not None:
            return self._met(self._next)
        got, room = 0, len(view)
        read = self._tls.recv_into
        try:
            while got < room:
                count = read(view[got:])
                if not count:
                    self._next = 0
                    break
                got += count
        except ssl.SSLWantReadError:
            return got or None
        except ssl.SSLWantWriteError:
            self._read_wants_write = True
            self._watch_writing(self._flush)
            return got or None
        except OSError as error:
            self._next = error
        return got or self._met(self._next)

    @staticmethod
    def _met(found: OSError | int | None) -> int:
        if isinstance(found, OSError):
            raise found
        return 0

    # --- writing

    def can_write_eof(self) -> bool:
        """TLS can only say that all is over (close_notify)."""
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("TLS has no half-close")

    def _flush(self) -> None:
        if self._read_wants_write:
            self._read_wants_write = False
            self._read_again()
            if self._lost:
                return
        super()._flush()

    def _read_again(self) -> None:
        if self._waiter is not None:
            self._wake()
        else:
            self._read()

    def _give(self, data: bytes | bytearray | memoryview) -> int:
        """All of it or nothing: a part is remembered by OpenSSL."""
        try:
            return self._tls.send(data)
        except ssl.SSLWantWriteError:
            return 0
        except ssl.SSLWantReadError as error:  # renegotiation, which is off
            raise ConnectionResetError("the peer wants another handshake") from error

    # --- the end

    def _finish(self) -> None:
        """close_notify; then what still comes is dropped until the peer ends too: a reset could overtake our data."""
        if self._lost or self._bound is not None:
            return
        self._bound = self._loop.call_later(self._farewell_s, self._fail, None)
        self._part()

    def _part(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLWantWriteError:
            self._watch_writing(self._part)
            return
        except OSError:
            pass  # WANT_READ: it is sent. Anything else: the peer is gone, or talks on; the drain tells
        self._watch_writing(None)
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._watch_reading(self._drain)
        self._drain()

    def _drain(self) -> None:
        """What comes after our last word, undecrypted and within a turn."""
        for _ in range(16):
            try:
                if not socket.socket.recv_into(self._tls, _drained):
                    break
            except (BlockingIOError, InterruptedError):
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
