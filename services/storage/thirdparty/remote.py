"""The other end of a copy: its URL taken apart, and what may be sent there. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urljoin, urlsplit

from edged.errors import BadRequest, Denied

SCHEMES = {"http": "http", "https": "https", "dav": "http", "davs": "https", "s3": "http", "s3s": "https"}
PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_TARGET = re.compile(r"[\x21-\x7e]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_VALUE = re.compile(r"[\x20-\x7e\x80-\xff\t]{0,16384}")
_TRANSFER = "transferheader"
# what describes the message or the connection is ours to say
_OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "expect", "te", "upgrade", "trailer"}
    | {"range", "if-range", "keep-alive", "proxy-connection", "content-range", "accept-encoding"}
)


@dataclass(frozen=True, slots=True)
class Remote:
    """A URL of a partner. ``target`` is the request target, already encoded by whoever wrote it."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What headers of a caller are meant for (RFC 6454)."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """Value of Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """For logs: without the query, which may hold a signature or token."""
        return f"{self.scheme}://{self.authority}{self.target.partition('?')[0]}"


def parse(url: str) -> Remote:
    """Raises BadRequest for what is not a plain http(s), dav(s) or s3(s) URL."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise BadRequest("not a URL") from None
    scheme = SCHEMES.get(parts.scheme.lower())
    if scheme is None:
        raise BadRequest("only http, https, dav and davs URLs can be copied")
    if "@" in parts.netloc:
        raise BadRequest("a URL with a user name is refused")
    host = (parts.hostname or "").rstrip(".")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _HOST.fullmatch(host) or not _TARGET.fullmatch(target):
        raise BadRequest("malformed URL")
    return Remote(scheme, host.lower(), port or PORTS[scheme], target)


def redirected(remote: Remote, location: str) -> Remote:
    """Where a redirect leads. Raises Denied when it leaves https (RFC 9110 §15.4 leaves that to us)."""
    authority = f"{remote.scheme}://{remote.authority}"
    found = parse(urljoin(authority + remote.target, location))
    if remote.scheme == "https" and found.scheme == "http":
        raise Denied("the partner redirects from https to http")
    return found


class Partners:
    """The site's list of hosts, and whether plain http is good enough."""

    def __init__(self, patterns: Iterable[str], *, plain_http: bool) -> None:
        self._patterns = tuple(pattern.lower() for pattern in patterns)
        self._plain_http = plain_http

    def check(self, remote: Remote) -> None:
        """Raises Denied when the site does not exchange data with this host."""
        if remote.scheme == "http" and not self._plain_http:
            raise Denied("this site copies over https only")
        if not any(fnmatchcase(remote.host, pattern) for pattern in self._patterns):
            raise Denied(f"{remote.host} is not on this site's list of partners")


def transfer_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """``TransferHeaderX: v`` → ``X: v``. ``bearer`` becomes ``Bearer``: XRootD 5 refuses it in lower case."""
    found: dict[str, str] = {}
    for name, value in headers:
        if not name.lower().startswith(_TRANSFER) or len(name) == len(_TRANSFER):
            continue
        short = name[len(_TRANSFER) :]
        if not _TOKEN.fullmatch(short) or not _VALUE.fullmatch(value):
            raise BadRequest("malformed TransferHeader")
        if short.lower() in _OURS:
            continue
        scheme, space, rest = value.partition(" ")
        if short.lower() == "authorization" and space and scheme.lower() == "bearer":
            value = f"Bearer {rest.strip()}"
        found[short] = value
    return found


def for_hop(headers: Mapping[str, str], first: Remote, here: Remote) -> Mapping[str, str]:
    """The caller's headers go to the origin they were given for, and nowhere else after a redirect."""
    return headers if first.origin == here.origin else {}
