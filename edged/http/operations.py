"""One table of operations per API. Routes, access decisions and OpenAPI all come from it.

``access`` has no default: an operation that forgets it does not type-check, and a table that lies
does not start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from edged.identity.words import Action, Verdict


class Public:
    """Anyone may call it."""


class Authenticated:
    """Any mapped token may call it."""


class Admin:
    """A token whose groups are in [identity] admins."""


@dataclass(frozen=True, slots=True)
class Requires:
    """A mapped token with a capability for ``action``."""

    action: Action


Access = Public | Authenticated | Admin | Requires
PUBLIC, AUTHENTICATED, ADMIN = Public(), Authenticated(), Admin()


@dataclass(slots=True)
class Call:
    """One request as an operation sees it: who, the decoded body, parameters; ``web`` only for streams."""

    request: web.Request
    verdict: Verdict | None
    body: Any = None
    path: dict[str, str] = field(default_factory=dict)
    query: Any = None

    @property
    def caller(self) -> Verdict:
        """The caller's verdict; only operations with access other than PUBLIC may ask."""
        if self.verdict is None:
            raise RuntimeError("operation is public")
        return self.verdict


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with its own status or headers, where the table's default does not do."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row: what is called, who may, what goes in, what comes out.

    ``takes``, ``query`` and ``returns`` are msgspec types; ``takes = bytes`` hands the raw stream to
    the handler (it reads ``call.request.content`` itself), ``returns = web.StreamResponse`` means the
    handler answers by itself.
    """

    method: str
    path: str
    access: Access
    run: Handler
    summary: str
    returns: Any = None
    takes: Any = None
    query: type[msgspec.Struct] | None = None
    status: int = 200
    problems: Sequence[int] = ()
    max_body: int = 1 << 20
    media: str = "application/json"
