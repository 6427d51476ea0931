"""What a shared cache may keep and for how long. Pure; source: RFC 9111, and RFC 5861 for stale-if-error.

Header names are lower case here. Times are Unix seconds.
"""

from __future__ import annotations

import calendar
import hashlib
from collections.abc import Mapping, Sequence
from email.utils import parsedate

import msgspec

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"}
    | {"trailer", "transfer-encoding", "upgrade"}
)
_CACHEABLE_BY_DEFAULT = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})  # RFC 9110 15.1
_UNDERSTOOD = _CACHEABLE_BY_DEFAULT | {302, 307}
_NEGATIVE = frozenset({404, 410})
_HEURISTIC = 0.1
_HEURISTIC_MAX_S = 86400.0
_MAX_LIFETIME_S = 365 * 86400.0


class Stored(msgspec.Struct, frozen=True):
    """A stored answer but for its body, which is the object ``body`` (by key) of ``size`` bytes.

    ``vary`` names the request fields that chose it; ``requested`` and ``received`` frame the exchange.
    """

    key: bytes
    status: int
    headers: list[tuple[str, str]]
    requested: float
    received: float
    body: str
    size: int
    vary: tuple[str, ...] = ()

    def fields(self) -> dict[str, str]:
        """The headers by lower-case name; repeated ones joined."""
        return joined(self.headers)


def joined(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name; repeated ones joined by a comma."""
    found: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        found[lower] = f"{found[lower]}, {value}" if lower in found else value
    return found


def end_to_end(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without the fields of one hop, those that Connection names included, and those we write ourselves."""
    named = {item.strip().lower() for item in joined(headers).get("connection", "").split(",")}
    gone = HOP_BY_HOP | named | {"content-length", "age", "via", "server"}
    return [(name, value) for name, value in headers if name.lower() not in gone]


def directives(text: str) -> dict[str, str]:
    """Cache-Control taken apart: lower-case name → argument, unquoted, "" when there is none."""
    found: dict[str, str] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name:
            found.setdefault(name.strip().lower(), value.strip().strip('"'))
    return found


def storable(status: int, fields: Mapping[str, str], request: Mapping[str, str]) -> bool:
    """Whether this answer to a GET may be kept and shown to others."""
    control = directives(fields.get("cache-control", ""))
    if "authorization" in request or "cookie" in request or "set-cookie" in fields:
        return False  # RFC 9111 3.5 would allow some; sharing what was personal is not worth it
    if status not in _UNDERSTOOD or control.keys() & {"no-store", "private"}:
        return False
    if "no-store" in directives(request.get("cache-control", "")) or "*" in fields.get("vary", ""):
        return False
    explicit = bool(control.keys() & {"public", "max-age", "s-maxage"}) or "expires" in fields
    return explicit or status in _CACHEABLE_BY_DEFAULT


def vary(fields: Mapping[str, str]) -> tuple[str, ...]:
    """The request fields an answer depends on, sorted."""
    return tuple(sorted({name.strip().lower() for name in fields.get("vary", "").split(",") if name.strip()}))


def variant(key: bytes, names: Sequence[str], request: Mapping[str, str]) -> str:
    """The name of one variant of a resource: a digest of its key and of the request fields that matter."""
    digest = hashlib.sha256(key)
    for name in names:
        value = " ".join(request.get(name, "").split())
        digest.update(b"\0" + name.encode() + b"\0" + value.encode("latin-1", "replace"))
    return digest.hexdigest()


def lifetime_s(stored: Stored, negative_s: float) -> float:
    """How long it is fresh from when it was received (RFC 9111 4.2.1, 4.2.2)."""
    fields = stored.fields()
    control = directives(fields.get("cache-control", ""))
    for name in ("s-maxage", "max-age"):
        if name in control:
            return _seconds(control[name])
    date = http_date(fields.get("date", "")) or stored.received
    if "expires" in fields:
        expires = http_date(fields["expires"])
        return min(max(0.0, expires - date), _MAX_LIFETIME_S) if expires else 0.0
    if stored.status in _NEGATIVE:
        return negative_s
    modified = http_date(fields.get("last-modified", ""))
    if modified is None or modified >= date:
        return 0.0
    return min((date - modified) * _HEURISTIC, _HEURISTIC_MAX_S)


def _seconds(text: str) -> float:
    return min(float(text), _MAX_LIFETIME_S) if text.isascii() and text.isdigit() else 0.0


def birth(stored: Stored) -> float:
    """When it was last right at its source, by our clock: now minus this is its age (RFC 9111 4.2.3)."""
    fields = stored.fields()
    date = http_date(fields.get("date", "")) or stored.received
    apparent = max(0.0, stored.received - date)
    corrected = _seconds(fields.get("x-edged-age", "0")) + (stored.received - stored.requested)
    return stored.received - max(apparent, corrected)


def fresh_until(stored: Stored, negative_s: float) -> float:
    """The moment it turns stale; no-cache means always ask."""
    if "no-cache" in directives(stored.fields().get("cache-control", "")):
        return 0.0
    return birth(stored) + lifetime_s(stored, negative_s)


def asks_anew(request: Mapping[str, str], age_s: float) -> bool:
    """Whether the client's own directives forbid an answer this old."""
    control = directives(request.get("cache-control", ""))
    if "no-cache" in control or ("cache-control" not in request and "no-cache" in request.get("pragma", "")):
        return True
    return "max-age" in control and age_s > _seconds(control["max-age"])


def stale_allowed_s(stored: Stored, default_s: float) -> float:
    """How long after turning stale it may stand in for an upstream that fails."""
    control = directives(stored.fields().get("cache-control", ""))
    if control.keys() & {"must-revalidate", "proxy-revalidate", "no-cache", "s-maxage"}:
        return 0.0
    if "stale-if-error" in control:
        return _seconds(control["stale-if-error"])
    return default_s


def not_modified(request: Mapping[str, str], fields: Mapping[str, str]) -> bool:
    """Whether the client's conditions say it has this answer already (RFC 9110 13.1.2, 13.1.3, 13.2.2)."""
    if "if-none-match" in request:
        mine = _opaque(fields.get("etag", ""))
        theirs = [_opaque(tag) for tag in request["if-none-match"].split(",")]
        return "*" in request["if-none-match"] or (bool(mine) and mine in theirs)
    since = http_date(request.get("if-modified-since", ""))
    modified = http_date(fields.get("last-modified", ""))
    return since is not None and modified is not None and modified <= since


def _opaque(tag: str) -> str:
    return tag.strip().removeprefix("W/")


def conditions(stored: Stored) -> list[tuple[str, str]]:
    """What to ask the upstream, to learn whether ``stored`` is still right."""
    fields = stored.fields()
    found = []
    if "etag" in fields:
        found.append(("If-None-Match", fields["etag"]))
    if "last-modified" in fields:
        found.append(("If-Modified-Since", fields["last-modified"]))
    return found


def refreshed(
    stored: Stored, headers: Sequence[tuple[str, str]], requested: float, received: float
) -> Stored:
    """``stored`` with the fields of a 304 over its own (RFC 9111 3.2)."""
    new = [
        pair for pair in end_to_end(headers) if pair[0].lower() not in ("content-encoding", "content-type")
    ]
    names = {name.lower() for name, _ in new}
    kept = [pair for pair in stored.headers if pair[0].lower() not in names]
    return msgspec.structs.replace(stored, headers=[*kept, *new], requested=requested, received=received)


def http_date(text: str) -> float | None:
    """An HTTP date in Unix seconds, None when it is none."""
    try:
        parts = parsedate(text) if text else None
        return float(calendar.timegm(parts)) if parts else None
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
