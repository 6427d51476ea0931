"""The stored answers of plain HTTP: one small file each, and the few facts about variants in memory."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from edged.logs import get_logger
from services.cache import freshness
from services.cache.freshness import Stored
from services.cache.store import Store, footprint, move

log = get_logger("edged.cache.records")

_MAX_IN_MEMORY = 16384
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Stored).decode


class Records:
    """Stored answers by key and variant. The record under the plain key says what the resource varies on."""

    def __init__(self, store: Store, disk: Executor) -> None:
        self._store = store
        self._disk = disk
        self._kept = 0
        self._vary: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def vary(self, key: bytes) -> tuple[str, ...]:
        """The request fields this resource is known to vary on."""
        return self._vary.get(key, ())

    async def find(self, key: bytes, request: Mapping[str, str]) -> Stored | None:
        """The stored answer for this request, fresh or not."""
        while True:
            kept = self._kept
            found = await asyncio.get_running_loop().run_in_executor(self._disk, self._find, key, request)
            if found is not None or kept == self._kept:  # else it may have come while we looked
                return found

    async def keep(self, stored: Stored, request: Mapping[str, str]) -> None:
        """Store an answer; a disk that is full keeps none, which is no error."""
        await asyncio.get_running_loop().run_in_executor(self._disk, self._keep, stored, request)
        self._kept += 1

    def _find(self, key: bytes, request: Mapping[str, str]) -> Stored | None:
        first = self._read(key, freshness.variant(key, (), request))
        if first is None or not first.vary:
            return first
        self._remember(key, first.vary)
        return self._read(key, freshness.variant(key, first.vary, request))

    def _keep(self, stored: Stored, request: Mapping[str, str]) -> None:
        names = [freshness.variant(stored.key, stored.vary, request)]
        if stored.vary:
            self._remember(stored.key, stored.vary)
            names.append(freshness.variant(stored.key, (), request))
        try:
            for name in names:
                self._write(self._path(name), _encode(stored))
        except OSError as error:
            log.warning("answer not kept", extra={"reason": str(error)})

    def _remember(self, key: bytes, names: tuple[str, ...]) -> None:
        self._vary[key] = names
        if len(self._vary) > _MAX_IN_MEMORY:
            self._vary.popitem(last=False)

    def _read(self, key: bytes, name: str) -> Stored | None:
        path = self._path(name)
        try:
            stored = _decode(path.read_bytes())
            now = time.time()
            os.utime(path, (now, now))
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, OSError):  # what a power cut left
            self._store.remove_file(path)
            return None
        return stored if stored.key == key else None

    def _write(self, path: Path, data: bytes) -> None:
        before = footprint(path.stat().st_size) if path.exists() else 0
        fresh = self._store.scratch()
        fresh.write_bytes(data)
        move(fresh, path)
        self._store.usage.add(footprint(len(data)) - before)

    def _path(self, name: str) -> Path:
        return self._store.answers / name[:2] / name[2:]
