"""Conditional requests (RFC 9110 §13): evaluated in the order of §13.2.2. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import Enum

from edged.accounts.api import Entry

_TAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')


class Outcome(Enum):
    """What the conditions say."""

    GO_ON = "go on"
    NOT_MODIFIED = "not modified"
    FAILED = "failed"


def etag(entry: Entry) -> str:
    """A strong validator: an upload always makes a new inode, a change in place a new time."""
    return f'"{entry.inode:x}-{entry.size:x}-{entry.mtime_ns:x}"'


def tags(header: str) -> list[tuple[bool, str]] | None:
    """``(weak, opaque)`` of an entity-tag list; None for ``*`` ; malformed rests are dropped."""
    if header.strip() == "*":
        return None
    found: list[tuple[bool, str]] = []
    at = 0
    while match := _TAG.match(header, at):
        found.append((match[1] is not None, match[2]))
        at = match.end()
        if at >= len(header):
            break
    return found


def matches(header: str, current: str | None, *, weak: bool) -> bool:
    """Whether a list names the current representation (None: there is none)."""
    wanted = tags(header)
    if wanted is None:
        return current is not None
    if current is None:
        return False
    opaque = current.strip('"')
    return any(tag == opaque and (weak or not is_weak) for is_weak, tag in wanted)


def evaluate(method: str, headers: Mapping[str, str], entry: Entry | None) -> Outcome:
    """The fate of a request on ``entry`` (None: nothing is there)."""
    tag = etag(entry) if entry is not None else None
    reading = method in ("GET", "HEAD")
    if (value := headers.get("If-Match")) is not None:
        if not matches(value, tag, weak=False):
            return Outcome.FAILED
    elif (value := headers.get("If-Unmodified-Since")) is not None:
        since = seconds(value)
        if since is not None and entry is not None and entry.mtime_ns // 1_000_000_000 > since:
            return Outcome.FAILED
    if (value := headers.get("If-None-Match")) is not None:
        if matches(value, tag, weak=True):
            return Outcome.NOT_MODIFIED if reading else Outcome.FAILED
    elif reading and entry is not None and (value := headers.get("If-Modified-Since")) is not None:
        since = seconds(value)
        if since is not None and entry.mtime_ns // 1_000_000_000 <= since:
            return Outcome.NOT_MODIFIED
    return Outcome.GO_ON


def range_still_valid(if_range: str | None, entry: Entry, now: float) -> bool:
    """Whether Range may be honoured under If-Range (§13.1.5): strong tag, or an exact date a minute old."""
    if if_range is None:
        return True
    if if_range.lstrip().startswith(('"', "W/")):
        return matches(if_range, etag(entry), weak=False)
    mtime = entry.mtime_ns // 1_000_000_000
    return seconds(if_range) == mtime and now - mtime >= 60


def seconds(date: str) -> int | None:
    """Unix seconds of an HTTP date in any of its three forms; None when it is not one."""
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, OverflowError, TypeError):
        return None
