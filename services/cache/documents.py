"""The mutable documents of one repository: kept 61 s, checked before they are believed, kept on disk.

A manifest must be whole, of this repository and not older than the newest ever seen; where the site
configured master keys, the whole chain of signatures must hold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from edged.errors import NotFound, Upstream
from services.cache import signatures
from services.cache.names import ObjectName
from services.cache.signatures import BadSignature, Manifest

MANIFEST = ".cvmfspublished"
WHITELIST = ".cvmfswhitelist"

FetchObject = Callable[[ObjectName, str], Awaitable[bytes]]
FetchWhitelist = Callable[[bool], Awaitable[bytes]]


class Rollback(BadSignature):
    """A manifest older than one already seen."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document as fetched at ``fetched`` (Unix seconds). ``data`` None: upstreams have none (404)."""

    data: bytes | None
    fetched: float

    def bytes(self) -> bytes:
        """The text. Raises NotFound."""
        if self.data is None:
            raise NotFound("no upstream has it")
        return self.data


@dataclass(slots=True)
class Trust:
    """What is known of a repository's signatures, for metrics and refusals."""

    revision: int = 0
    published: float = 0.0
    whitelist_expires: float = 0.0
    certificate_expires: float = 0.0
    rollbacks: int = 0
    bad: int = 0


class Documents:
    """One repository's documents, shared with other processes through ``directory``."""

    def __init__(self, repository: str, directory: Path, keys: Sequence[rsa.RSAPublicKey]) -> None:
        self.repository = repository
        self.trust = Trust()
        self._directory = directory
        self._keys = keys
        self._held: dict[str, Document] = {}
        self._floor_from_disk()

    def held(self, file: str) -> Document | None:
        """The newest copy, in memory or as another process left it on disk."""
        known = self._held.get(file)
        stored = self._stored(file, newer_than=known.fetched if known else 0.0)
        if stored is not None:
            self._held[file] = known = stored
            if file == MANIFEST:
                self._raise_floor(stored)
        return known

    def keep(self, file: str, data: bytes | None) -> Document:
        """Remember a checked document, here and on disk."""
        document = Document(data, time.time())
        self._held[file] = document
        if data is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            fresh = self._directory / f"{file.replace('/', '_')}.{os.getpid()}.new"
            fresh.write_bytes(data)
            os.utime(fresh, (document.fetched, document.fetched))
            fresh.rename(self._path(file))
        return document

    def forget(self) -> None:
        """Drop all, the rollback floor included."""
        self._held.clear()
        self.trust.revision = 0
        for path in self._directory.glob("*") if self._directory.is_dir() else ():
            path.unlink(missing_ok=True)

    async def check(self, file: str, data: bytes, whitelist: FetchWhitelist, fetch: FetchObject) -> None:
        """Whether ``data`` may be served as ``file``. Raises BadSignature, or what fetching raises."""
        match file:
            case ".cvmfspublished":
                await self._check_manifest(data, whitelist, fetch)
            case ".cvmfswhitelist":
                self._check_whitelist(data)

    async def _check_manifest(self, data: bytes, whitelist: FetchWhitelist, fetch: FetchObject) -> None:
        manifest = signatures.parse_manifest(data)
        if manifest.repository != self.repository:
            raise BadSignature(f"manifest of another repository: {manifest.repository[:100]!r}")
        self.held(MANIFEST)  # another process may have seen a newer one
        if manifest.revision < self.trust.revision:
            raise Rollback(f"revision {manifest.revision} after {self.trust.revision}")
        if self._keys:
            await self._check_chain(data, manifest, whitelist, fetch)
        self.trust.revision = manifest.revision
        self.trust.published = manifest.timestamp

    async def _check_chain(
        self, data: bytes, manifest: Manifest, whitelist: FetchWhitelist, fetch: FetchObject
    ) -> None:
        if manifest.certificate is None:
            raise BadSignature("the manifest names no certificate")
        try:
            signer = signatures.certificate(await fetch(manifest.certificate, "X"))
        except NotFound:
            raise BadSignature("the manifest's certificate does not exist") from None
        for again in (False, True):  # a new certificate may be in a whitelist newer than ours
            listed = signatures.check_whitelist(
                await whitelist(again), self.repository, self._keys, time.time()
            )
            if again or signatures.fingerprints(signer) & listed.fingerprints:
                break
        signatures.check_manifest(data, self.repository, signer, listed)
        self.trust.certificate_expires = signer.not_valid_after_utc.timestamp()

    def _check_whitelist(self, data: bytes) -> None:
        now = time.time()
        if self._keys:
            listed = signatures.check_whitelist(data, self.repository, self._keys, now)
        else:
            listed = signatures.parse_whitelist(data)
            if listed.repository != self.repository:
                raise BadSignature(f"whitelist of another repository: {listed.repository[:100]!r}")
            if listed.expires < now:
                raise BadSignature("whitelist has expired")
        self.trust.whitelist_expires = listed.expires

    # on disk

    def _path(self, file: str) -> Path:
        return self._directory / file.replace("/", "_")

    def _stored(self, file: str, newer_than: float) -> Document | None:
        path = self._path(file)
        try:
            fetched = path.stat().st_mtime
            if fetched <= newer_than:
                return None
            return Document(path.read_bytes(), fetched)
        except FileNotFoundError:
            return None

    def _floor_from_disk(self) -> None:
        stored = self._stored(MANIFEST, 0.0)
        if stored is not None:
            self._raise_floor(stored)

    def _raise_floor(self, stored: Document) -> None:
        try:
            manifest = signatures.parse_manifest(stored.bytes())
        except BadSignature:  # a power cut's work: it will be fetched anew
            self._held.pop(MANIFEST, None)
            self._path(MANIFEST).unlink(missing_ok=True)
            return
        if manifest.revision > self.trust.revision:
            self.trust.revision = manifest.revision
            self.trust.published = manifest.timestamp


def as_upstream_fault(error: BadSignature) -> Upstream:
    """What the client is told: the upstreams are at fault."""
    return Upstream("the upstreams' copy cannot be trusted", detail=str(error))
