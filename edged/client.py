"""What the command line asks the daemons with: the public APIs, a token, clear errors.

The token is found as WLCG Bearer Token Discovery says: BEARER_TOKEN, BEARER_TOKEN_FILE,
$XDG_RUNTIME_DIR/bt_u<uid>, /tmp/bt_u<uid>. It is never taken from the command line.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from edged.errors import (
    BadRequest,
    Busy,
    Conflict,
    Denied,
    EdgeError,
    NotFound,
    Unauthenticated,
    Unavailable,
    Unsupported,
    words_of,
)

_KINDS: dict[int, type[EdgeError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: Denied,
    404: NotFound,
    405: Unsupported,
    409: Conflict,
    429: Busy,
}


def discovered_token() -> str:
    """The caller's token. Raises Unauthenticated when there is none."""
    if token := os.environ.get("BEARER_TOKEN", "").strip():
        return token
    places = [os.environ.get("BEARER_TOKEN_FILE"), *_default_places()]
    for place in places:
        if place and Path(place).is_file():
            return Path(place).read_text(encoding="ascii", errors="replace").strip()
    raise Unauthenticated("no token: set BEARER_TOKEN_FILE (or BEARER_TOKEN)")


def _default_places() -> list[str]:
    name = f"bt_u{os.geteuid()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return [*([f"{runtime}/{name}"] if runtime else []), f"/tmp/{name}"]  # noqa: S108 - the profile names it


@dataclass(slots=True)
class ApiClient:
    """One API of one site."""

    url: str
    token: str
    session: aiohttp.ClientSession

    async def call(self, method: str, path: str, *, body: Any = None, **query: str | float) -> Any:
        """One call; the decoded JSON answer, or None. Raises the EdgeError the site meant."""
        data = None if body is None else msgspec.json.encode(body)
        async with self.request(method, path, data=data, json=data is not None, query=query) as response:
            raw = await response.read()
            return msgspec.json.decode(raw) if raw else None

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        data: Any = None,
        json: bool = False,
        query: dict[str, Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request whose body the caller reads."""
        headers = {"Authorization": f"Bearer {self.token}"}
        if json:
            headers["Content-Type"] = "application/json"
        params = {key: str(value) for key, value in (query or {}).items() if value not in ("", None)}
        try:
            async with self.session.request(
                method, self.url.rstrip("/") + path, data=data, headers=headers, params=params
            ) as response:
                if response.status >= 400:
                    raise _raised(response.status, await response.read())
                yield response
        except aiohttp.ClientError as error:
            raise Unavailable(f"{self.url}: {words_of(error)}") from error


def _raised(status: int, raw: bytes) -> EdgeError:
    try:
        problem = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.MsgspecError:
        problem = {}
    text = str(problem.get("detail") or f"status {status}")
    return _KINDS.get(status, Unavailable)(text)


@asynccontextmanager
async def connected(
    url: str, ca_file: Path | None = None, token: str | None = None
) -> AsyncIterator[ApiClient]:
    """An ApiClient for ``url``; the token is discovered unless given."""
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    connector = aiohttp.TCPConnector(ssl=context)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=150)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield ApiClient(url, token or discovered_token(), session)
