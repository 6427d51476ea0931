"""The body of a request, taken by who stores it: pulled into its own blocks, never handed over in pieces.

One interface for the two ways a request comes: over aiohttp, and over our own heads (lean.py). ``receive``
answers at once; who hears None waits with ``wait``, holding nothing it could give back meanwhile.
"""

from __future__ import annotations

import asyncio
import re
from typing import NoReturn, Protocol

from aiohttp import ClientPayloadError, StreamReader
from aiohttp.web_protocol import RequestPayloadError

from edged.errors import BadRequest
from edged.http.stream import Stream

LINE = 256  # longest line of a chunk's size
TRAILERS = 8190
_AHEAD = 4096  # read at once to find the next chunk's size
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[\t ]*(?:;[\t\x20-\x7e]*)?")
_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class Body(Protocol):
    """What a handler takes a body from."""

    def receive(self, view: memoryview) -> int | None:
        """Bytes put into ``view``; 0 at the end, None when none are there now. Raises BadRequest."""
        ...

    async def wait(self) -> None:
        """Until ``receive`` has something to say. Raises BadRequest."""
        ...


class Collected:
    """A body that aiohttp parses."""

    def __init__(self, content: StreamReader) -> None:
        self._content = content
        self._piece = b""
        self._at = 0
        self._ended = False

    def receive(self, view: memoryview) -> int | None:
        """See ``Body``."""
        if self._at == len(self._piece):
            return 0 if self._ended else None
        piece = self._piece[self._at : self._at + len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    async def wait(self) -> None:
        """See ``Body``."""
        try:
            self._piece, self._at = await self._content.readany(), 0
        except (ClientPayloadError, RequestPayloadError) as error:
            raise BadRequest("the body ended early", detail=str(error)) from error
        self._ended = not self._piece


class Pulled:
    """A body that is taken from the connection itself, from its Content-Length or in chunks (RFC 9112 §7.1).

    ``ahead`` are bytes already read; what follows the body is left in it. ``waiting``: for the client.
    """

    def __init__(self, stream: Stream, ahead: bytearray, length: int | None) -> None:
        """``length``: None for chunks."""
        self.ended = length == 0
        self.waiting = False
        self.heard_at = asyncio.get_running_loop().time()
        self._stream = stream
        self._ahead = ahead
        self._chunked = length is None
        self._left = length or 0  # of the body, or of this chunk
        self._first = True
        self._gone = False

    def receive(self, view: memoryview) -> int | None:
        """See ``Body``."""
        if self._chunked and not self._left and not self.ended and not self._next_chunk():
            return None
        if self.ended:
            return 0
        if self._ahead:
            count = min(len(view), len(self._ahead), self._left)
            with memoryview(self._ahead) as ahead:
                view[:count] = ahead[:count]
            del self._ahead[:count]
        else:
            found = self._take(view[: self._left])
            if found is None:
                return None
            count = found
        self._left -= count
        self.ended = not self._left and not self._chunked
        return count

    def _take(self, view: memoryview) -> int | None:
        """From the connection. None also when it has ended: ``wait`` tells."""
        try:
            count = self._stream.receive_into(view)
        except OSError:
            count = 0
        if count == 0:
            self._gone = True
            return None
        if count is not None:
            self.heard_at = asyncio.get_running_loop().time()
        return count

    async def wait(self) -> None:
        """See ``Body``. When the client has left, this ends only by cancellation, with the connection."""
        if self._gone:
            await self._leave()
        self.waiting = True
        try:
            await self._stream.readable()
        finally:
            self.waiting = False

    async def _leave(self) -> NoReturn:
        self._stream.abort()
        while True:
            await asyncio.get_running_loop().create_future()

    # --- chunks

    def _next_chunk(self) -> bool:
        """Read the size of the next one; False when it is not all there. Raises BadRequest."""
        while True:
            try:
                if self._sized():
                    return True
            except BadRequest:
                self._gone = True  # where the next request begins, nobody knows
                raise
            more = bytearray(_AHEAD)
            count = self._take(memoryview(more))
            if count is None:
                return False
            self._ahead += more[:count]

    def _sized(self) -> bool:
        begin = 0 if self._first else 2  # the end of the chunk before
        if not self._first and not b"\r\n".startswith(bytes(self._ahead[:2])):
            raise BadRequest("malformed chunk")
        end = self._ahead.find(b"\r\n", begin, begin + LINE)
        if end < 0:
            if len(self._ahead) >= begin + LINE:
                raise BadRequest("malformed chunk")
            return False
        size = _SIZE.fullmatch(self._ahead, begin, end)
        if size is None:
            raise BadRequest("malformed chunk")
        self._left = int(size[1], 16)
        if not self._left:
            return self._trailed(end + 2)
        self._first = False
        del self._ahead[: end + 2]
        return True

    def _trailed(self, begin: int) -> bool:
        """Pass over the trailers; False when they are not all there."""
        at = begin
        while (end := self._ahead.find(b"\r\n", at)) >= 0:
            if end == at:
                del self._ahead[: end + 2]
                self.ended = True
                return True
            if _FIELD.fullmatch(self._ahead, at, end) is None:
                break
            at = end + 2
        if end >= 0 or len(self._ahead) - begin > TRAILERS:
            raise BadRequest("malformed trailers")
        return False
