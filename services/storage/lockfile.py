"""Locks shared by the worker processes of the endpoint: one small file, changed under flock.

Its first 16 bytes are a generation and the number of locks, mapped into every process, so that a
request on an endpoint without locks (nearly all) costs one memory read.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from edged.errors import Busy
from services.storage.locks import Lock, LockTable

_HEAD = struct.Struct("<QQ")  # generation, number of locks
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Lock]).decode


class Locks:
    """The locks of the endpoint."""

    def __init__(self, file: Path, *, limit: int, longest_s: float) -> None:
        self.longest_s = longest_s
        self._limit = limit
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < _HEAD.size:
            os.pwrite(self._fd, _HEAD.pack(0, 0), 0)
        self._head = mmap.mmap(self._fd, _HEAD.size)
        self._generation = -1
        self._table = LockTable()
        self._turn = asyncio.Lock()

    def close(self) -> None:
        self._head.close()
        os.close(self._fd)

    def any(self) -> bool:
        """Whether there may be a lock at all."""
        return bool(_HEAD.unpack_from(self._head)[1])

    async def now(self) -> LockTable:
        """The table as it stands; do not change it."""
        if not self.any():
            return LockTable()
        async with self._turn:
            if _HEAD.unpack_from(self._head)[0] != self._generation:
                await asyncio.to_thread(self._read_shared)
        self._table.expire(time.time())
        return self._table

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[LockTable]:
        """The table, to be changed; the change is kept unless the block raises."""
        async with self._turn:
            await asyncio.to_thread(fcntl.flock, self._fd, fcntl.LOCK_EX)
            try:
                await asyncio.to_thread(self._load)
                before = LockTable(self._table)
                self._table.expire(time.time())
                try:
                    yield self._table
                    if len(self._table) > max(self._limit, len(before)):
                        raise Busy("too many locks on this endpoint")  # noqa: TRY301
                except BaseException:
                    self._table = before
                    raise
                await asyncio.to_thread(self._store)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _read_shared(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        try:
            self._load()
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _load(self) -> None:
        generation = _HEAD.unpack_from(self._head)[0]
        if generation == self._generation:
            return
        size = os.fstat(self._fd).st_size - _HEAD.size
        data = os.pread(self._fd, size, _HEAD.size) if size > 0 else b""
        try:
            self._table = LockTable(_decode(data) if data else ())
        except msgspec.MsgspecError:  # torn by a crash: locks are advisory and short, start anew
            self._table = LockTable()
        self._generation = generation

    def _store(self) -> None:
        data = _encode(list(self._table))
        os.pwrite(self._fd, data, _HEAD.size)
        os.ftruncate(self._fd, _HEAD.size + len(data))
        self._generation += 1
        _HEAD.pack_into(self._head, 0, self._generation, len(self._table))
