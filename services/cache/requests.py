"""Reading one request head, strictly. Source: RFC 9112, and what llhttp lets pass though it should not.

llhttp refuses broken syntax. On top of that this refuses what makes two parsers disagree: more than
one Host, any body, any Transfer-Encoding, a fragment, user info, a head over its limits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import httptools

MAX_HEADERS = 100
END = b"\r\n\r\n"

_AUTHORITY = re.compile(
    rb"(?:\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9._-]{0,252}[a-z0-9_.])?)(?::[0-9]{1,5})?"
)
_TARGET = re.compile(rb"[!$-~]*")  # no '"', no '#', no space, no control, no 8-bit
_DOTS = re.compile(rb"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)


class Refused(Exception):
    """A request we do not answer with content. ``status`` is what the client gets, then it is closed."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Fields:
    """The header fields of a request: names in lower case, lists joined by commas."""

    values: dict[bytes, bytes]
    keep_alive: bool

    @property
    def plain(self) -> bool:
        """Nothing in them changes the answer to a GET from what another client got."""
        return self.keep_alive and not (_SPECIAL & self.values.keys())

    @property
    def no_cache(self) -> bool:
        """The client says our copy is bad (CVMFS after a damaged object, or any reload)."""
        control = self.values.get(b"cache-control", b"").lower()
        return b"no-cache" in control or (
            not control and b"no-cache" in self.values.get(b"pragma", b"").lower()
        )


_SPECIAL = frozenset(
    {b"range", b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range"}
    | {b"cache-control", b"pragma", b"authorization", b"cookie"}
)
_ONCE = frozenset({b"host", b"content-length", b"range", b"if-modified-since", b"if-range", b"authorization"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request head. ``authority`` is lower case without ``:80``, empty in origin form."""

    method: bytes
    authority: bytes
    path: bytes
    fields: Fields
    version: str
    line: bytes

    @property
    def is_head(self) -> bool:
        """Only the head of the answer is wanted."""
        return self.method == b"HEAD"


class _Collector:
    """What httptools calls back with."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            raise Refused(400, "too many header fields")
        self.headers.append((name.lower(), value))

    def on_body(self, _body: bytes) -> None:
        raise Refused(400, "a request body has no meaning here")

    def on_message_complete(self) -> None:
        self.complete = True


def parse(head: bytes) -> Request:
    """The request in ``head``, which ends with the empty line. Raises Refused."""
    seen = _Collector()
    parser = httptools.HttpRequestParser(seen)
    upgrade = False
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        upgrade = True
    except httptools.HttpParserCallbackError as error:
        cause = error.__context__
        raise cause if isinstance(cause, Refused) else Refused(400, "not understood") from error
    except httptools.HttpParserError as error:
        raise Refused(400, "not HTTP/1") from error
    method, version = parser.get_method(), parser.get_http_version()
    if method == b"CONNECT":
        raise Refused(403, "no tunnels through the cache")
    line = head[: head.index(b"\r\n")]
    if line != b"%b %b HTTP/%b" % (
        method,
        seen.url,
        version.encode(),
    ):  # a memo of lines needs them canonical
        raise Refused(400, "not a request line")
    values = _values(seen.headers, version)
    if not (seen.complete or upgrade):
        raise Refused(400, "a request body has no meaning here")
    if method not in (b"GET", b"HEAD"):
        raise Refused(405, "only GET and HEAD")
    authority, path = _target(seen.url)
    return Request(method, authority, path, Fields(values, _keep_alive(values, version)), version, line)


def _values(headers: list[tuple[bytes, bytes]], version: str) -> dict[bytes, bytes]:
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in values:
            if name in _ONCE:
                raise Refused(400, "a header field that may come once came twice")
            values[name] += b", " + value
        else:
            values[name] = value
    if version not in ("1.0", "1.1"):
        raise Refused(400, "not HTTP/1.0 or 1.1")
    if b"transfer-encoding" in values or values.get(b"content-length", b"0").strip() != b"0":
        raise Refused(400, "a request body has no meaning here")
    host = values.get(b"host")
    if host is None and version == "1.1":
        raise Refused(400, "no Host")  # RFC 9112 section 3.2
    if host and not _AUTHORITY.fullmatch(host.lower()):
        raise Refused(400, "Host is not an authority")
    return values


def _keep_alive(values: dict[bytes, bytes], version: str) -> bool:
    options = values.get(b"connection", values.get(b"proxy-connection", b"")).lower()
    return b"keep-alive" in options if version == "1.0" else b"close" not in options


def _target(url: bytes) -> tuple[bytes, bytes]:
    """Authority (normalised, "" for origin form) and path with query."""
    if not _TARGET.fullmatch(url):
        raise Refused(400, "a character that does not belong into a request target")
    authority = b""
    if not url.startswith(b"/"):
        scheme, colon, rest = url.partition(b"://")
        if not colon or scheme.lower() != b"http":
            raise Refused(403, "only http URLs")
        authority, slash, tail = rest.partition(b"/")
        url = slash + tail or b"/"
        authority = authority.lower()
        if not _AUTHORITY.fullmatch(authority):
            raise Refused(400, "the URL's host is not an authority")
        authority = authority.removesuffix(b":80")
    if _DOTS.search(url.partition(b"?")[0]):
        raise Refused(400, "dot segments in the path")
    return authority, url
