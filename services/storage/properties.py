"""Properties of resources: the live ones computed from a stat, the dead ones kept in an attribute.

Pure. Dead properties of a file are one attribute, so that PROPPATCH changes all or none of them.
"""

from __future__ import annotations

import mimetypes
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from xml.sax.saxutils import escape as xml_escape

import msgspec

from edged.accounts.api import Entry, Kind, Space
from edged.errors import NoSpace
from services.storage.conditions import etag
from services.storage.davxml import DAV, Change, Name
from services.storage.locks import Lock, active_lock_xml
from services.storage.namespace import PLAIN

APACHE = "http://apache.org/dav/props/"
LCGDM = "LCGDM:"
DEAD = "dav.properties"  # not "edged.": those any reader may write
MAX_DEAD = 60_000  # bytes; one extended attribute holds at most 64 KiB (xattr(7)), on ext4 about 4
SECOND_NS = 1_000_000_000

SUPPORTED_LOCK = (
    "<D:lockentry><D:lockscope><D:exclusive/></D:lockscope><D:locktype><D:write/></D:locktype></D:lockentry>"
    "<D:lockentry><D:lockscope><D:shared/></D:lockscope><D:locktype><D:write/></D:locktype></D:lockentry>"
)


@dataclass(slots=True)
class Resource:
    """What a PROPFIND answer says one thing about. ``href`` is escaped for URLs, not yet for XML."""

    href: str
    name: str
    collection: bool
    entry: Entry | None
    space: Space | None = None
    locks: tuple[Lock, ...] = ()
    dead: Mapping[Name, str] = field(default_factory=dict)
    now: float = 0.0


@lru_cache(maxsize=4096)
def http_date(second: int) -> str:
    """``Sun, 06 Nov 1994 08:49:37 GMT`` (RFC 9110 §5.6.7)."""
    moment = time.gmtime(second)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[moment.tm_wday]
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[
        moment.tm_mon - 1
    ]
    return (
        f"{day}, {moment.tm_mday:02d} {month} {moment.tm_year:04d} "
        f"{moment.tm_hour:02d}:{moment.tm_min:02d}:{moment.tm_sec:02d} GMT"
    )


@lru_cache(maxsize=4096)
def iso_date(second: int) -> str:
    """``1994-11-06T08:49:37Z`` (RFC 4918 §15.1)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


@lru_cache(maxsize=256)
def _type_of_suffix(suffix: str) -> str:
    return mimetypes.guess_type(f"x{suffix}", strict=True)[0] or "application/octet-stream"


def media_type(name: str) -> str:
    """By suffix; scripts of browsers are never served as such from user data."""
    dot = name.rfind(".")
    found = _type_of_suffix(name[dot:].lower()) if dot > 0 else "application/octet-stream"
    return "text/plain" if found in ACTIVE_TYPES else found


ACTIVE_TYPES = frozenset(
    {"text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml", "text/javascript"}
)


def display_name(name: str) -> str:
    """For XML: what XML 1.0 cannot say (control characters, lone surrogates) becomes U+FFFD."""
    if PLAIN.fullmatch(name):
        return name
    return xml_escape("".join(c if c >= " " and not "\ud800" <= c <= "\udfff" else "\ufffd" for c in name))


def _second(resource: Resource) -> int | None:
    return resource.entry.mtime_ns // SECOND_NS if resource.entry else None


def _length(r: Resource) -> str | None:
    return str(r.entry.size) if r.entry and not r.collection else None


def _modified(r: Resource) -> str | None:
    second = _second(r)
    return http_date(second) if second is not None else None


def _created(r: Resource) -> str | None:
    second = _second(r)
    return iso_date(second) if second is not None else None


def _mode(r: Resource) -> str | None:
    """As DPM did it, in octal with the type: davix believes it over resourcetype."""
    if r.entry is None:
        return None
    return f"{(stat.S_IFDIR if r.collection else stat.S_IFREG) | r.entry.mode:o}"


def _executable(r: Resource) -> str | None:
    if r.collection or r.entry is None:
        return None
    return "T" if r.entry.mode & 0o100 else "F"


def _lock_discovery(r: Resource) -> str:
    return "".join(active_lock_xml(lock, r.now, xml_escape(lock.href)) for lock in r.locks)


LIVE: Mapping[Name, Callable[[Resource], str | None]] = {
    Name(DAV, "resourcetype"): lambda r: "<D:collection/>" if r.collection else "",
    Name(DAV, "displayname"): lambda r: display_name(r.name),
    Name(DAV, "getcontentlength"): _length,
    Name(DAV, "getlastmodified"): _modified,
    Name(DAV, "creationdate"): _created,
    Name(DAV, "getetag"): lambda r: xml_escape(etag(r.entry)) if r.entry and not r.collection else None,
    Name(DAV, "getcontenttype"): lambda r: None if r.collection else media_type(r.name),
    Name(DAV, "supportedlock"): lambda _: SUPPORTED_LOCK,
    Name(DAV, "lockdiscovery"): _lock_discovery,
    Name(DAV, "quota-used-bytes"): lambda r: str(r.space.used) if r.space else None,
    Name(DAV, "quota-available-bytes"): lambda r: str(r.space.available) if r.space else None,
    Name(APACHE, "executable"): _executable,
    Name(LCGDM, "mode"): _mode,
}
# RFC 4918 §9.1 allprop; quota is in it for Rucio, which asks in no other way (RFC 4331 leaves it out)
ALLPROP = tuple(name for name in LIVE if name.space == DAV)
QUOTA = frozenset({Name(DAV, "quota-used-bytes"), Name(DAV, "quota-available-bytes")})
PROTECTED = frozenset(LIVE) - {Name(DAV, "displayname")}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[str, str, str]]).decode


def dead_of(attributes: Mapping[str, bytes]) -> dict[Name, str]:
    """The dead properties among a file's attributes; a damaged attribute counts as none."""
    if DEAD not in attributes:
        return {}
    try:
        return {Name(space, local): xml for space, local, xml in _decode(attributes[DEAD])}
    except msgspec.MsgspecError:
        return {}


def packed(dead: Mapping[Name, str]) -> bytes:
    """The attribute that keeps them. Raises NoSpace when they do not fit."""
    data = _encode([(name.space, name.local, xml) for name, xml in dead.items()])
    if len(data) > MAX_DEAD:
        raise NoSpace("too many properties on one resource")
    return data


def changed(dead: Mapping[Name, str], changes: Iterable[Change]) -> dict[Name, str]:
    """After applying ``changes`` in document order (RFC 4918 §9.2)."""
    result = dict(dead)
    for change in changes:
        if change.xml is None:
            result.pop(change.name, None)
        else:
            result[change.name] = change.xml
    return result


def is_directory(entry: Entry) -> bool:
    return entry.kind is Kind.DIRECTORY
