"""From stat(2) results to entries."""

from __future__ import annotations

import os
import stat

from edged.accounts.api import Entry, Kind
from edged.accounts.beneath import LOOK, LOOK_LINK

_FORMAT = 0o170000  # S_IFMT
_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.LINK}


def look(root: int, path: str) -> Entry:
    """The entry at ``path`` below ``root``: a link's target when that lies beneath, else the link itself."""
    name = path.rpartition("/")[2]
    try:
        fd = LOOK.open(root, os.fsencode(path))
    except OSError:
        fd = LOOK_LINK.open(root, os.fsencode(path))  # raises when it is not there at all
    try:
        return entry(name, os.fstat(fd))
    finally:
        os.close(fd)


def entry(name: str, facts: os.stat_result) -> Entry:
    """``name`` is left out when it is not UTF-8: msgpack text cannot carry it, the caller knows it."""
    return Entry(
        name if name.isascii() or is_text(name) else "",
        _KINDS.get(facts.st_mode & _FORMAT, Kind.OTHER),
        facts.st_size,
        facts.st_mtime_ns,
        facts.st_ctime_ns,
        facts.st_ino,
        facts.st_dev,
        facts.st_mode & 0o7777,
        facts.st_uid,
        facts.st_gid,
        facts.st_nlink,
        facts.st_blocks,
    )


def is_text(name: str) -> bool:
    """Whether a name from the disk is UTF-8 (undecodable bytes arrive as lone surrogates)."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
