"""Reading a CVMFS catalog (an SQLite file): which objects and nested catalogs it names.

Source: CVMFS 2.12, ``catalog_sql.h`` (flags) and the schema 2.5 of a real repository.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

from services.cache.names import ObjectName

_FILE, _LINK, _SPECIAL, _CHUNKED, _EXTERNAL = 4, 8, 16, 64, 128
_HASH_SHIFT, _COMPRESSION_SHIFT = 8, 11
_ALGORITHMS = ("", "-rmd160", "-shake128")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """An object with what is needed to ask for it and to unpack it."""

    name: ObjectName
    suffix: str = ""
    compressed: bool = True


@dataclass(frozen=True, slots=True)
class Nested:
    """A catalog mounted at ``path`` (absolute within the repository)."""

    path: str
    catalog: ObjectName


class Catalog:
    """An unpacked catalog in ``file``."""

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def nested(self) -> Iterator[Nested]:
        """The catalogs below this one."""
        for path, digest in self._database.execute("SELECT path, sha1 FROM nested_catalogs"):
            yield Nested(path, ObjectName.parse(digest))

    def contents(self) -> Iterator[Content]:
        """The objects of its files, chunks included, external files not."""
        rows = self._database.execute(
            "SELECT hash, flags FROM catalog WHERE flags & ? AND NOT flags & ? AND hash IS NOT NULL",
            (_FILE, _LINK | _SPECIAL | _EXTERNAL),
        )
        for digest, flags in rows:
            if digest and not flags & _CHUNKED:
                yield _content(digest, flags, "")
        chunks = self._database.execute(
            "SELECT chunks.hash, catalog.flags FROM chunks JOIN catalog USING (md5path_1, md5path_2)"
        )
        for digest, flags in chunks:
            yield _content(digest, flags, "P")


def _content(digest: bytes, flags: int, suffix: str) -> Content:
    algorithm = _ALGORITHMS[(flags >> _HASH_SHIFT) & 7]
    compressed = not (flags >> _COMPRESSION_SHIFT) & 7
    return Content(ObjectName.of(digest.hex(), algorithm), suffix, compressed)


def unpack(packed: bytes, target: Path, limit: int = 64 << 30) -> None:
    """Write the unpacked bytes of a zlib stream to ``target``. Raises ValueError for a bad or endless one."""
    stream = isal_zlib.decompressobj()
    written = 0
    try:
        with target.open("wb") as out:
            data = packed
            while data or not stream.eof:
                piece = stream.decompress(data, _PIECE)
                data = stream.unconsumed_tail
                written += out.write(piece)
                if written > limit:
                    raise ValueError("unpacks to more than its limit")
                if not piece and not data and not stream.eof:
                    raise ValueError("cut short")
                if stream.eof:
                    break
    except isal_zlib.error as error:  # type: ignore[misc]
        raise ValueError(f"not a zlib stream: {error}") from None
