"""What a path below ``/cvmfs/`` names. Source: CVMFS 2.12, ``shash::Any`` and the stratum-1 layout.

An object's name is the hash of its bytes as transferred, so whoever holds the name can verify them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

SHA256 = "-sha256"  # ours: bodies of plain HTTP answers; no CVMFS path can name it

_REPOSITORY = rb"[a-z0-9][a-z0-9._-]{0,98}"
_OBJECT = rb"([0-9a-f]{2})/?([0-9a-f]{38})(-rmd160|-shake128)?([A-Z]?)"
_PATH = re.compile(
    rb"/cvmfs/(?P<repository>" + _REPOSITORY + rb")/(?:"
    rb"data/" + _OBJECT + rb"|"
    rb"\.cvmfsalt-" + _OBJECT + rb"|"
    rb"(?P<document>\.cvmfspublished|\.cvmfswhitelist(?:\.pkcs7)?|\.cvmfsreflog|\.cvmfs_status\.json"
    rb"|\.cvmfs_last_snapshot|\.cvmfs_is_snapshotting|\.cvmfs_master_replica)|"
    rb"api/v1\.0/geo/(?P<caller>[A-Za-z0-9._:@-]{1,255})/(?P<servers>[A-Za-z0-9._:,\[\]-]{1,4096})"
    rb")"
)
_INFO = re.compile(rb"/cvmfs/info/v1/(?:repositories|meta)\.json")


@dataclass(frozen=True, slots=True)
class ObjectName:
    """A content-addressed object. ``key``, its place in the store: ``ab/cdef…[-rmd160|-shake128|-sha256]``."""

    key: str

    @classmethod
    def of(cls, digest: str, algorithm: str = "") -> ObjectName:
        """From a hex digest and an algorithm suffix as CVMFS writes it ("" is SHA-1)."""
        return cls(f"{digest[:2]}/{digest[2:]}{algorithm}")

    @classmethod
    def parse(cls, text: str) -> ObjectName:
        """From ``<40 hex>[-rmd160|-shake128][suffix letter]``, as manifests write it. Raises ValueError."""
        match = re.fullmatch(r"([0-9a-f]{40})(-rmd160|-shake128)?[A-Z]?", text)
        if match is None:
            raise ValueError(f"not an object name: {text[:60]!r}")
        return cls.of(match[1], match[2] or "")

    @property
    def digest(self) -> str:
        """The hash in hex."""
        return self.key.replace("/", "", 1).partition("-")[0]

    @property
    def algorithm(self) -> str:
        """``""`` for SHA-1, else with its dash."""
        _, dash, rest = self.key.partition("-")
        return dash + rest

    def path(self, suffix: str = "") -> str:
        """Below the repository's URL: ``data/ab/cdef…C``."""
        return f"data/{self.key}{suffix}"

    def hasher(self) -> Hasher:
        """A hash of this name's kind."""
        return Hasher(self.algorithm)

    def matches(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether ``data`` are this object's bytes."""
        hasher = self.hasher()
        hasher.update(data)
        return hasher.hexdigest() == self.digest


class Hasher:
    """One of the content hashes; 20 bytes of output for all but SHA-256."""

    __slots__ = ("_hash", "_xof", "update")

    def __init__(self, algorithm: str) -> None:
        self._xof = hashlib.shake_128() if algorithm == "-shake128" else None
        self._hash: _Hash | None = None if self._xof else _new(algorithm)
        self.update = (self._xof or self._hash).update  # type: ignore[union-attr]

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._xof.hexdigest(20) if self._xof else self._hash.hexdigest()  # type: ignore[union-attr]


def _new(algorithm: str) -> _Hash:
    match algorithm:
        case "":
            return hashlib.sha1(usedforsecurity=False)
        case "-rmd160":
            return hashlib.new("ripemd160", usedforsecurity=False)
        case "-sha256":
            return hashlib.sha256()
        case _:
            raise ValueError(f"unknown hash: {algorithm!r}")


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """An immutable object of a repository. ``path`` is what the stratum is asked for."""

    repository: str
    path: bytes
    name: ObjectName


@dataclass(frozen=True, slots=True)
class DocumentPath:
    """A mutable document: manifest, whitelist and the like. ``file`` is its name."""

    repository: str
    path: bytes
    file: str


@dataclass(frozen=True, slots=True)
class GeoPath:
    """A question for the order of stratum servers as seen from ``caller``."""

    repository: str
    path: bytes
    servers: tuple[str, ...]


CvmfsPath = ObjectPath | DocumentPath | GeoPath

INFO = "info"  # /cvmfs/info/v1/…: about the server, of no repository


def parse(path: bytes) -> CvmfsPath | None:
    """What ``path`` (starting with ``/cvmfs/``) names; None when nothing CVMFS serves has that form."""
    match = _PATH.fullmatch(path)
    if match is None:
        return DocumentPath(INFO, path, path.decode()) if _INFO.fullmatch(path) else None
    repository = match["repository"].decode()
    if match["document"]:
        return DocumentPath(repository, path, match["document"].decode())
    if match["servers"]:
        return GeoPath(repository, path, tuple(match["servers"].decode().split(",")))
    first = 2 if match[2] else 6
    digest = (match[first] + match[first + 1]).decode()
    return ObjectPath(repository, path, ObjectName.of(digest, (match[first + 2] or b"").decode()))
