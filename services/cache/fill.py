"""An object on its way in: fetched once, read by everybody who asked for it meanwhile.

A small object is held back until it is whole and verified. A larger one goes into a file and out to
its readers while it comes; its last TAIL bytes are held back until the hash is right, so nobody ever
receives a complete wrong object.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from edged.errors import EdgeError, NoSpace, Upstream
from services.cache.files import OpenFile
from services.cache.names import SHA256, Hasher, ObjectName
from services.cache.store import Part, Store
from services.cache.ticket import Ticket

TAIL = 64 << 10
_FLUSH = 128 << 10
_COPY = 1 << 20
MEMORY_LIMIT = 64 << 20  # one object, while the disk takes nothing


class Damaged(Upstream):
    """The bytes are not those of the name."""

    code = "damaged"


class Fill:
    """One fetch. Its fetcher begins, feeds and finishes it; readers wait on ``more`` and ``end``."""

    __slots__ = (
        "_buffer",
        "_changed",
        "_disk",
        "_flushed",
        "_hasher",
        "_limit",
        "_part",
        "_small",
        "_store",
        "body",
        "done",
        "failure",
        "file",
        "generation",
        "kept",
        "loaded",
        "name",
        "ready",
        "received",
        "settle",
        "size",
        "ticket",
    )

    def __init__(
        self,
        store: Store,
        disk: Executor,
        *,
        name: ObjectName | None,
        small: int,
        limit: int,
        ticket: Ticket | None = None,
    ) -> None:
        self.name = name  # None: unknown until the end, as for plain HTTP bodies
        self.size: int | None = None  # as promised by the upstream
        self.body: bytes | None = None
        self.file: OpenFile | None = None
        self.ready = 0  # bytes that may leave
        self.received = 0
        self.done = False
        self.failure: EdgeError | None = None
        self.generation = 0
        self.settle: Callable[[], Awaitable[None]] | None = None  # done before the end is told
        self.loaded = asyncio.get_running_loop().create_future()  # the promise of a size, or the end
        self._store, self._disk, self.ticket = store, disk, ticket
        self._small, self._limit = small, limit
        self._flushed = 0
        self.kept = True  # False: the disk was full, it lives in memory only
        self._changed = asyncio.get_running_loop().create_future()
        self._buffer = bytearray()
        self._part: Part | None = None
        self._hasher = self._new_hasher()

    # for readers

    async def more(self, offset: int, generation: int) -> int:
        """Wait until bytes after ``offset`` may leave, or for the end; how far. Raises the fetch's error."""
        while True:
            if self.failure is not None:
                raise self.failure
            if generation != self.generation and offset:
                raise Damaged("the object broke while it was sent")
            if self.done or self.ready > offset:
                return self.ready
            await asyncio.shield(self._changed)

    async def end(self) -> None:
        """Wait until it is whole and verified. Raises the fetch's error."""
        while not self.done:
            if self.failure is not None:
                raise self.failure
            await asyncio.shield(self._changed)

    # for the fetcher

    @property
    def streaming(self) -> bool:
        """Some of it may have left already."""
        return self._part is not None

    def begin(self, size: int | None) -> None:
        """An upstream promises ``size`` bytes. Raises Upstream when that is over the limit."""
        if size is not None and size > self._limit:
            raise Upstream("an upstream's object is over the limit", size=size)
        if self.size not in (None, size) and self.ready:
            raise Damaged("two upstreams promise two sizes")
        self.size = size
        if size is not None and size > self._small and not self.loaded.done():
            self.loaded.set_result(None)

    async def feed(self, chunk: bytes) -> None:
        """The next bytes. Returns when they are taken, which may be after a write to disk."""
        self.received += len(chunk)
        if self.received > self._limit:
            raise Upstream("an upstream's object is over the limit", size=self.received)
        self._buffer += chunk
        if len(self._buffer) >= _FLUSH and (self._part is not None or self.received > self._small):
            await self._flush()

    async def finish(self) -> None:
        """The upstream says this was all. Raises Damaged when it is not the object."""
        if self.size is not None and self.received != self.size:
            raise Upstream("an upstream broke off", detail=f"{self.received} of {self.size} bytes")
        if self._part is None and self.received <= self._small:
            body = bytes(self._buffer)
            self._hasher.update(body)
            self._judge()
            self.body = body
            if self.ticket is not None:  # other workers will look for it on disk
                await asyncio.get_running_loop().run_in_executor(self._disk, self._put, body)
        else:
            await self._flush()
            self._judge()
            assert self._part is not None and self.name is not None
            self.kept = self._part.path is not None
            await asyncio.get_running_loop().run_in_executor(
                self._disk, self._store.commit, self._part, self.name, self.received
            )
            self._part.close()
        self.size = self.received
        if self.settle is not None:
            await self.settle()
        self.ready = self.received
        self.done = True
        self._announce()
        if self.ticket is not None:
            self.ticket.finished(self.received)

    def restart(self) -> None:
        """Begin again from nothing: what came was wrong. Readers who already have some of it will stop."""
        self.generation += 1
        self._discard()
        self._buffer.clear()
        self.received = self.ready = self._flushed = 0
        self.size = None
        self._hasher = self._new_hasher()
        self._announce()

    def fail(self, error: EdgeError) -> None:
        """No upstream could give it."""
        self.failure = error
        self._discard()
        self._announce()
        if self.ticket is not None:
            self.ticket.failed(error)

    def mirror(self, file: OpenFile | None, size: int | None, ready: int, *, done: bool = False) -> None:
        """Another process fetches it: show what it has."""
        self.file, self.size, self.ready = file, size, ready
        self.received = ready
        if size is not None and not self.loaded.done():
            self.loaded.set_result(None)
        self.done = done
        self._announce()

    # inside

    def _new_hasher(self) -> Hasher:
        return self.name.hasher() if self.name is not None else Hasher(SHA256)

    def _judge(self) -> None:
        digest = self._hasher.hexdigest()
        if self.name is None:
            self.name = ObjectName.of(digest, SHA256)
        elif digest != self.name.digest:
            raise Damaged("the bytes do not have the hash they are named by", object=self.name.key)

    async def _flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        await asyncio.get_running_loop().run_in_executor(self._disk, self._write, data)
        assert self._part is not None
        self.file = self._part.file
        self.ready = max(self.ready, self.received - TAIL)
        if self.ticket is not None:
            self.ticket.progress(self._part.path, self.size, self.ready)
        self._announce()

    def _write(self, data: bytearray) -> None:
        self._hasher.update(data)
        try:
            if self._part is None:
                self._part = self._store.new_part()
            self._part.write(data)
        except NoSpace:
            if (self.size or self.received) > MEMORY_LIMIT:
                raise
            self._part = self._in_memory(self._part)
            self._part.write(data)
        self._flushed += len(data)

    def _in_memory(self, old: Part | None) -> Part:
        """The disk is full: go on in memory. Served, not kept."""
        new = self._store.memory_part()
        if old is not None:
            copied = 0
            while copied < self._flushed:
                chunk = os.pread(old.file.fd, min(_COPY, self._flushed - copied), copied)
                new.write(chunk)
                copied += len(chunk)
            old.discard()
        return new

    def _put(self, body: bytes) -> None:
        assert self.name is not None
        try:
            self._store.put(self.name, body)
        except NoSpace:
            return  # served, not kept

    def _discard(self) -> None:
        part, self._part = self._part, None
        self.file = None
        if part is not None:
            self._disk.submit(part.discard)

    def _announce(self) -> None:
        if not self.loaded.done() and (self.done or self.failure is not None):
            self.loaded.set_result(None)
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)
