"""Names: from the bytes of a request target to an export and a path beneath it, and back to an href.

Pure. The kernel decides again beneath the export's root; what is refused here is refused for clarity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes, urlsplit

from edged.accounts.api import Place
from edged.config.storage import Export
from edged.errors import BadRequest, NotFound

MAX_NAME = 255  # bytes; NAME_MAX of every file system we meet
MAX_PATH = 4000  # bytes; below PATH_MAX, which counts the export's root too
# RFC 3986 pchar without percent-encoding, so that an href is the path most clients would write
PLAIN = re.compile(r"[A-Za-z0-9._-]+")  # nearly every name: needs no escape in URLs, XML or HTML
SAFE = "!$&'()*+,;=:@~-._"


@dataclass(frozen=True, slots=True)
class Target:
    """One resource beneath an export. ``href`` is the path as the client wrote it, without trailing slash."""

    export: Export
    path: str  # relative to the export, no leading slash; "" is the export itself
    href: str
    collection: bool = False  # written with a trailing slash

    @property
    def place(self) -> Place:
        """Where workers find it."""
        return Place(self.export.label, self.path)

    @property
    def vo_path(self) -> str:
        """What a token's scope is compared with: relative to the VO's prefix, with leading slash."""
        return "/" + self.path

    @property
    def name(self) -> str:
        """Last segment, or the export's last one."""
        return self.path.rpartition("/")[2] or self.export.prefix.rpartition("/")[2]

    @property
    def key(self) -> str:
        """One string per resource, whatever its spelling: what locks are kept under."""
        prefix = self.export.prefix.rstrip("/")
        return f"{prefix}/{self.path}" if self.path else prefix or "/"

    def child(self, name: str) -> Target:
        """A member of this collection."""
        path = f"{self.path}/{name}" if self.path else name
        return Target(self.export, path, f"{self.href.rstrip('/')}/{escape(name)}")

    def parent(self) -> Target | None:
        """The collection that holds it; None for the export itself."""
        if not self.path:
            return None
        return Target(
            self.export, self.path.rpartition("/")[0], self.href.rstrip("/").rpartition("/")[0], True
        )


@dataclass(frozen=True, slots=True)
class Above:
    """A collection above the exports, which exists only to lead to them."""

    href: str
    exports: tuple[Export, ...]


def escape(name: str) -> str:
    """One segment, percent-encoded for an href. Names on disk that are not UTF-8 arrive as surrogates."""
    if PLAIN.fullmatch(name):
        return name
    return quote(name.encode("utf-8", "surrogateescape"), safe=SAFE)


def path_of(raw: str) -> str:
    """The path of a request target or Destination: origin or absolute form (RFC 9112 §3.2)."""
    if not raw.startswith("/"):
        raw = "/" + raw.partition("://")[2].partition("/")[2]
    return raw.partition("?")[0].partition("#")[0]


def segments(raw_path: str) -> list[str]:
    """The decoded names of a path. Raises BadRequest for what no client means well.

    Empty segments are dropped (grid clients write ``host//path``); dot segments, encoded slashes, NUL
    and bytes that are not UTF-8 are refused, never repaired.
    """
    try:
        raw_path.encode("ascii")
    except UnicodeEncodeError:
        # aiohttp hands undecodable bytes on as surrogates; well-formed raw UTF-8 is tolerated
        raw_path = quote(raw_path.encode("utf-8", "surrogateescape"), safe=SAFE + "/%")
    names: list[str] = []
    total = 0
    for part in raw_path.split("/"):
        if not part:
            continue
        data = unquote_to_bytes(part) if "%" in part else part.encode()
        total += len(data) + 1
        if len(data) > MAX_NAME or total > MAX_PATH:
            raise BadRequest("name too long")
        if data in (b".", b".."):
            raise BadRequest("dot segments are not allowed in a path")
        if b"/" in data or b"\0" in data:
            raise BadRequest("encoded '/' or NUL in a path")
        try:
            names.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            raise BadRequest("path is not UTF-8") from None
    return names


class Namespace:
    """The exports of a site, looked up by longest prefix."""

    def __init__(self, exports: Iterable[Export]) -> None:
        self.exports = tuple(exports)
        self._by_prefix = {tuple(p for p in e.prefix.split("/") if p): e for e in self.exports}
        self._depth = max((len(key) for key in self._by_prefix), default=0)

    def locate(self, raw_path: str) -> Target | Above:
        """The resource a request names. Raises BadRequest, or NotFound when no export covers it."""
        names = segments(raw_path)
        for count in range(min(self._depth, len(names)), -1, -1):
            export = self._by_prefix.get(tuple(names[:count]))
            if export is not None:
                href = raw_path.rstrip("/") or "/"
                return Target(export, "/".join(names[count:]), href, raw_path.endswith("/"))
        leading = tuple(names)
        below = tuple(e for key, e in self._by_prefix.items() if key[: len(leading)] == leading)
        if not below:
            raise NotFound("no such path")
        return Above(raw_path.rstrip("/") or "/", below)


class OwnNames:
    """Whether an absolute URL means this endpoint. The site's names and aliases are configured.

    A Host header the client chose proves nothing, so it is not asked.
    """

    def __init__(self, hosts: Iterable[str], ports: Iterable[int]) -> None:
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts if host)
        self._ports = set(ports)

    def add_port(self, port: int) -> None:
        """A port we listen on."""
        self._ports.add(port)

    def is_own(self, url: str) -> bool:
        """True for a path, or for a URL with one of our names and ports. Raises BadRequest if malformed."""
        if url.startswith("/"):
            return True
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise BadRequest("not a URL") from None
        if not parts.hostname or parts.scheme not in ("http", "https", "dav", "davs"):
            raise BadRequest("not an http(s) or dav(s) URL")
        if port is None:
            port = 443 if parts.scheme in ("https", "davs") else 80
        return parts.hostname.lower().rstrip(".") in self._hosts and port in self._ports
