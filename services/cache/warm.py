"""Fetching ahead: a repository's tree, or a list, through the running cache; and filling an alien cache.

An alien cache is a directory on the parallel file system that CVMFS clients read instead of a network
(CVMFS_ALIEN_CACHE). It holds unpacked objects by hash, and the name of the root catalog. Source: CVMFS
2.12, ``cvmfs_preload`` and ``PosixCacheManager``.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edged.config.cache import UpstreamLimits
from edged.errors import EdgeError, Upstream
from services.cache import signatures
from services.cache.catalog import Catalog, Content, unpack
from services.cache.documents import MANIFEST
from services.cache.names import ObjectName
from services.cache.signatures import Manifest
from services.cache.upstream.origin import Origin

_MAX_OBJECT = 4 << 30
_PATIENT = UpstreamLimits(connect_s=5, slow_s=4, answer_s=4.9, stall_s=60, connections=64)
_TRIES = 3


@dataclass(slots=True)
class Progress:
    """What a warming has done so far."""

    catalogs: int = 0
    objects: int = 0
    known: int = 0
    bytes: int = 0
    failed: int = 0


Tell = Callable[[Progress], None]


class AlienCache:
    """The directory of an alien cache; many may write to it at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._new = directory / "txn"
        self._new.mkdir(parents=True, exist_ok=True)

    def path(self, name: ObjectName) -> Path:
        """Where an unpacked object lies: its name without the letter of its kind."""
        return self._directory / name.key

    def add(self, content: Content, data: bytes) -> None:
        """Unpack an object to its place; whole or not at all."""
        target = self.path(content.name)
        target.parent.mkdir(exist_ok=True)
        fresh = self._new / secrets.token_hex(12)
        if content.compressed:
            unpack(data, fresh)
        else:
            fresh.write_bytes(data)
        fresh.chmod(0o644)
        fresh.rename(target)

    def finish(self, manifest: Manifest) -> None:
        """Name the revision to mount; written last, so that it never names what is not there."""
        root = manifest.catalog
        fresh = self._new / secrets.token_hex(12)
        fresh.write_text(f"{root.digest}{root.algorithm}T{manifest.timestamp}")
        fresh.rename(self._directory / f"cvmfschecksum.{manifest.repository}")


class Warmer:
    """Asks the cache at ``base`` for all that is named, ``parallel`` objects at a time."""

    def __init__(
        self, base: str, repository: str, *, parallel: int = 16, alien: AlienCache | None = None, tell: Tell
    ) -> None:
        self._origin = Origin(base, _PATIENT)
        self._repository = repository
        self._room = asyncio.Semaphore(parallel)
        self._alien = alien
        self._tell = tell
        self._seen: set[str] = set()
        self.progress = Progress()

    async def tree(self, prefix: str = "/") -> Progress:
        """Everything below ``prefix`` in the newest revision. Raises EdgeError when it cannot begin."""
        manifest = signatures.parse_manifest(await self._get(MANIFEST))
        await self._objects(Content(name, suffix) for name, suffix in manifest.objects())
        waiting = deque([manifest.catalog])
        while waiting:
            with (
                tempfile.TemporaryDirectory() as scratch,
                await self._catalog(waiting.popleft(), scratch) as catalog,
            ):
                self.progress.catalogs += 1
                nested = [one for one in catalog.nested() if _related(one.path, prefix)]
                waiting.extend(one.catalog for one in nested)
                await self._objects(Content(one.catalog, "C") for one in nested)
                await self._objects(catalog.contents())
        if self._alien is not None and not self.progress.failed:
            self._alien.finish(manifest)
        self._origin.close()
        return self.progress

    async def paths(self, lines: Iterable[str]) -> Progress:
        """The objects of a list, each ``data/xx/…``."""
        names = (line.strip().rpartition("data/")[2].replace("/", "") for line in lines if line.strip())
        await self._objects(
            Content(ObjectName.parse(name), name[-1] if name[-1].isupper() else "") for name in names
        )
        self._origin.close()
        return self.progress

    async def _catalog(self, name: ObjectName, scratch: str) -> Catalog:
        packed = await self._get(name.path("C"))
        file = Path(scratch) / "catalog"
        await asyncio.to_thread(unpack, packed, file)
        return Catalog(file)

    async def _objects(self, contents: Iterable[Content]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for content in contents:
                if content.name.key in self._seen:
                    continue
                self._seen.add(content.name.key)
                if self._alien is not None and self._alien.path(content.name).exists():
                    self.progress.known += 1
                    continue
                await self._room.acquire()
                tasks.create_task(self._one(content))

    async def _one(self, content: Content) -> None:
        try:
            if self._alien is None:
                size = await self._read_away(content)
            else:
                data = await self._get(content.name.path(content.suffix))
                size = len(data)
                await asyncio.to_thread(self._alien.add, content, data)
            self.progress.objects += 1
            self.progress.bytes += size
        except (EdgeError, ValueError, OSError):
            self.progress.failed += 1
        finally:
            self._room.release()
            self._tell(self.progress)

    async def _read_away(self, content: Content) -> int:
        reply = await self._origin.get(self._url(content.name.path(content.suffix)))
        size = 0
        async for chunk in reply.chunks():
            size += len(chunk)
        if reply.status != 200:
            raise Upstream("the cache has no such object", status=reply.status)
        return size

    async def _get(self, path: str) -> bytes:
        for attempt in range(_TRIES):
            try:
                reply = await self._origin.get(self._url(path))
                data = await reply.read(_MAX_OBJECT)
            except Upstream:
                if attempt == _TRIES - 1:
                    raise
                continue
            if reply.status == 200:
                return data
            raise Upstream(f"the cache answers {reply.status} for {path}", status=reply.status)
        raise AssertionError("unreachable")

    def _url(self, path: str) -> bytes:
        return f"/cvmfs/{self._repository}/{path}".encode()


def _related(mountpoint: str, prefix: str) -> bool:
    """Whether a nested catalog lies below ``prefix`` or on the way to it."""
    top, wanted = mountpoint.rstrip("/") + "/", prefix.rstrip("/") + "/"
    return top.startswith(wanted) or wanted.startswith(top)
