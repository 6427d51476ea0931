"""What a handler may use of a request, whichever way it came: over aiohttp or over our own heads (lean.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol

from aiohttp import HttpVersion10, HttpVersion11, web
from multidict import CIMultiDict, CIMultiDictProxy

from edged.http.body import Body, Collected, Pulled
from edged.http.head import Head
from edged.logs import request_id


class Headed(Protocol):
    """Whatever has fields."""

    @property
    def headers(self) -> CIMultiDictProxy[str]: ...


class Request(Headed, Protocol):
    """Read-only. ``begun``: the head of an answer has gone out."""

    begun: bool

    @property
    def method(self) -> str: ...
    @property
    def raw_path(self) -> str:
        """The target as it was sent, query included."""
        ...

    @property
    def shown_path(self) -> str:
        """The path for the log, without the query."""
        ...

    @property
    def version(self) -> Any: ...
    @property
    def content_length(self) -> int | None: ...
    @property
    def body_exists(self) -> bool: ...
    @property
    def can_read_body(self) -> bool: ...
    @property
    def keep_alive(self) -> bool: ...
    @property
    def transport(self) -> asyncio.Transport | None: ...
    @property
    def protocol(self) -> Any: ...
    @property
    def body(self) -> Body: ...


class Parsed(web.BaseRequest):
    """One that aiohttp has parsed."""

    begun = False

    @property
    def shown_path(self) -> str:
        """See ``Request``."""
        return self.rel_url.raw_path

    @property
    def body(self) -> Body:
        """To be taken by one reader, once."""
        return Collected(self.content)

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        self.begun = True
        response.headers["Server"] = "edged"  # aiohttp would tell its version, and Python's
        if rid := request_id.get():
            response.headers.setdefault("X-Request-Id", rid)


def parsed(request: Request) -> Parsed:
    """For methods that no front takes lean: they may use all that aiohttp has."""
    if not isinstance(request, Parsed):
        raise TypeError(f"{request.method} is not for lean requests")
    return request


class Lean:
    """One whose head we have read. Hot: every small GET and PUT of storage."""

    __slots__ = ("_head", "begun", "body", "headers", "method", "protocol", "raw_path", "transport")

    def __init__(self, head: Head, body: Pulled, protocol: Any, transport: asyncio.Transport) -> None:
        self._head = head
        self.begun = False
        self.body = body
        self.method = head.method
        self.raw_path = head.target
        self.headers = CIMultiDictProxy(CIMultiDict(head.fields))
        self.protocol = protocol
        self.transport = transport

    @property
    def shown_path(self) -> str:
        """See ``Request``."""
        return self.raw_path.partition("?")[0]

    @property
    def version(self) -> Any:
        """As aiohttp's: ``minor`` is what matters."""
        return HttpVersion11 if self._head.minor else HttpVersion10

    @property
    def content_length(self) -> int | None:
        """As announced; None for chunks, and where nothing is."""
        return self._head.length

    @property
    def body_exists(self) -> bool:
        """Whether there is one, be it empty."""
        return not self._head.bodiless

    @property
    def can_read_body(self) -> bool:
        """Whether there is more of it to come."""
        return not self.body.ended

    @property
    def keep_alive(self) -> bool:
        """Whether the client would send another request."""
        return self._head.keep_alive

    @property
    def head_bytes(self) -> int:
        """What the limit on headers counts."""
        return sum(len(name) + len(value) for name, value in self._head.fields)


def head_bytes(request: Request) -> int:
    """Bytes of all names and values."""
    if isinstance(request, Lean):
        return request.head_bytes
    fields: Iterable[tuple[bytes, bytes]] = getattr(request, "raw_headers", ())
    return sum(len(name) + len(value) for name, value in fields)
