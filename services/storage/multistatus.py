"""Writing 207 Multi-Status bodies (RFC 4918 §13). Pure; long ones come in pieces.

Namespaces are declared where they are used and ``D:`` once, which every client met so far reads.
Bench: tests/bench/storage_propfind.py (10,000 entries; the allprop path formats one string each).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import NamedTuple
from xml.sax.saxutils import escape as xml_escape
from xml.sax.saxutils import quoteattr

from edged.accounts.api import Entry, Kind
from services.storage.conditions import etag
from services.storage.davxml import DAV, Name, Propfind, empty_element
from services.storage.namespace import PLAIN, escape
from services.storage.properties import (
    ALLPROP,
    LIVE,
    QUOTA,
    SECOND_NS,
    SUPPORTED_LOCK,
    Resource,
    display_name,
    http_date,
    iso_date,
    media_type,
)

HEAD = b'<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:">\n'
TAIL = b"</D:multistatus>\n"
CONTENT_TYPE = 'application/xml; charset="utf-8"'
PIECE = 64 * 1024

_LOCKS = f"<D:supportedlock>{SUPPORTED_LOCK}</D:supportedlock><D:lockdiscovery/>"


class Pieces:
    """The document being written: full pieces as resources come, the rest at the end."""

    def __init__(self, request: Propfind) -> None:
        self._request = request
        self._parts: list[str] = [HEAD.decode()]
        self._size = 0

    def of(self, resources: Iterable[Resource]) -> Iterator[bytes]:
        """The pieces that these resources fill."""
        for resource in resources:
            text = response(self._request, resource)
            self._parts.append(text)
            self._size += len(text)
            if self._size >= PIECE:
                yield self._taken()

    def listed(self, base: str, entries: Iterable[Entry]) -> Iterator[bytes]:
        """The pieces that members fill, when all properties are asked and none is locked. Hot."""
        for row in rows(xml_escape(base), entries):
            self._parts.append(row)
            self._size += len(row)
            if self._size >= PIECE:
                yield self._taken()

    @property
    def plain(self) -> bool:
        """Whether ``listed`` tells all that was asked of members."""
        return self._request.kind == "allprop" and not self._request.names

    def end(self) -> bytes:
        """What is left, and the closing tag."""
        return self._taken() + TAIL

    def _taken(self) -> bytes:
        text = "".join(self._parts)
        self._parts.clear()
        self._size = 0
        return text.encode("utf-8", "replace")


def response(request: Propfind, resource: Resource) -> str:
    """One response element."""
    if request.kind == "allprop" and not request.names:
        if not resource.dead and not resource.locks and resource.entry is not None and resource.space is None:
            return _plain(resource)
        return _found(resource, _all_of(resource), [])
    if request.kind == "propname":
        names = [*_present(resource, LIVE), *resource.dead]
        return _wrap(resource.href, _propstat("".join(map(empty_element, names)), 200))
    wanted = list(request.names)
    if request.kind == "allprop":
        wanted = list(dict.fromkeys([*_all_of(resource), *request.names]))
    found = [name for name in wanted if _has(resource, name)]
    missing = [name for name in wanted if name not in set(found)]
    return _found(resource, found, missing)


def rows(base: str, entries: Iterable[Entry]) -> Iterator[str]:
    """``_plain`` of the members of ``base``, which ends in a slash: ten thousand of them, one format each."""
    plain, directory = PLAIN.fullmatch, Kind.DIRECTORY
    before, dates = -1, ""
    for entry in entries:
        name, size, mtime_ns = entry.name, entry.size, entry.mtime_ns
        href = shown = name
        if not plain(name):
            href, shown = xml_escape(escape(name)), display_name(name)
        second = mtime_ns // SECOND_NS
        if second != before:
            before, dates = second, _dates(second)
        if entry.kind is directory:
            yield (
                f"<D:response><D:href>{base}{href}/</D:href><D:propstat><D:prop>"
                "<D:resourcetype><D:collection/></D:resourcetype>"
                f"<D:displayname>{shown}</D:displayname>{dates}"
            )
        else:
            yield (
                f"<D:response><D:href>{base}{href}</D:href><D:propstat><D:prop><D:resourcetype/>"
                f"<D:displayname>{shown}</D:displayname><D:getcontentlength>{size}</D:getcontentlength>"
                f'<D:getetag>"{entry.inode:x}-{size:x}-{mtime_ns:x}"</D:getetag>'
                f"<D:getcontenttype>{media_type(name)}</D:getcontenttype>{dates}"
            )


def _dates(second: int) -> str:
    """What ends a plain row."""
    return (
        f"<D:getlastmodified>{http_date(second)}</D:getlastmodified>"
        f"<D:creationdate>{iso_date(second)}</D:creationdate>{_LOCKS}"
        "</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>\n"
    )


def _plain(r: Resource) -> str:
    """allprop of a resource without locks, quota and dead properties: nearly every line of a listing."""
    entry = r.entry
    assert entry is not None
    second = entry.mtime_ns // SECOND_NS
    if r.collection:
        kind, size = "<D:resourcetype><D:collection/></D:resourcetype>", ""
    else:
        kind = "<D:resourcetype/>"
        size = (
            f"<D:getcontentlength>{entry.size}</D:getcontentlength><D:getetag>{etag(entry)}</D:getetag>"
            f"<D:getcontenttype>{media_type(r.name)}</D:getcontenttype>"
        )
    return (
        f"<D:response><D:href>{xml_escape(r.href)}</D:href><D:propstat><D:prop>{kind}"
        f"<D:displayname>{display_name(r.name)}</D:displayname>{size}{_dates(second)}"
    )


def _all_of(resource: Resource) -> list[Name]:
    live = [name for name in _present(resource, ALLPROP) if name not in QUOTA or resource.space is not None]
    return live + [name for name in resource.dead if name not in live]


def _present(resource: Resource, names: Iterable[Name]) -> list[Name]:
    return [name for name in names if LIVE[name](resource) is not None]


def _has(resource: Resource, name: Name) -> bool:
    return name in resource.dead or (name in LIVE and LIVE[name](resource) is not None)


def _found(resource: Resource, found: Sequence[Name], missing: Sequence[Name]) -> str:
    text = ""
    if found or not missing:
        text = _propstat("".join(_value(resource, name) for name in found), 200)
    if missing:
        text += _propstat("".join(map(empty_element, missing)), 404)
    return _wrap(resource.href, text)


def _value(resource: Resource, name: Name) -> str:
    dead = resource.dead.get(name)
    if dead is not None:
        return dead
    value = LIVE[name](resource) or ""
    if name.space == DAV:
        return f"<D:{name.local}>{value}</D:{name.local}>" if value else f"<D:{name.local}/>"
    return f"<x:{name.local} xmlns:x={quoteattr(name.space)}>{value}</x:{name.local}>"


def _propstat(props: str, status: int) -> str:
    return f"<D:propstat><D:prop>{props}</D:prop>{status_line(status)}</D:propstat>"


def status_line(status: int) -> str:
    """The status element of a code."""
    return f"<D:status>HTTP/1.1 {status} {HTTPStatus(status).phrase}</D:status>"


def _wrap(href: str, inner: str) -> str:
    return f"<D:response><D:href>{xml_escape(href)}</D:href>{inner}</D:response>\n"


def patched(href: str, names: Sequence[Name], statuses: Sequence[int]) -> bytes:
    """The answer of a PROPPATCH: one propstat per property, in order."""
    inner = "".join(
        _propstat(empty_element(name), status) for name, status in zip(names, statuses, strict=True)
    )
    return HEAD + _wrap(href, inner).encode() + TAIL


class Refused(NamedTuple):
    """A member that a DELETE, COPY or MOVE could not include. ``href`` is escaped for URLs."""

    href: str
    status: int
    why: str


def failures(refused: Iterable[Refused]) -> bytes:
    """The answer of a DELETE, COPY or MOVE that succeeded only in part (RFC 4918 §9.6.1)."""
    lines = "".join(
        f"<D:response><D:href>{xml_escape(href)}</D:href>{status_line(status)}"
        f"<D:responsedescription>{xml_escape(why)}</D:responsedescription></D:response>\n"
        for href, status, why in refused
    )
    return HEAD + lines.encode() + TAIL
