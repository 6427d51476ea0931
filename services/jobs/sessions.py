"""A job's session directory, reached as its account: inputs in, outputs out, control files.

Whatever lies in it is the job's own writing and is never trusted: names are checked again, types
and sizes come from the worker's stat, and nothing in it is interpreted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import PurePosixPath
from typing import Protocol

import msgspec

from edged.accounts.api import SESSIONS, Entry, Files, Kind, OpenFile, Place
from edged.errors import BadRequest, Conflict, NotFound, TooLarge
from edged.identity.words import JobId
from services.jobs.batch.script import MARKER, OUTCOME, PRIVATE
from services.jobs.policy import check_name

LISTING = 10_000
DEPTH = 16


class Sessions(Protocol):
    """Where session directories are. Drivers that reach a site from outside bring their own."""

    async def create(self, grant: bytes, job: JobId, files: Mapping[str, tuple[bytes, int]]) -> None: ...

    async def put(
        self,
        grant: bytes,
        job: JobId,
        name: str,
        content: AsyncIterator[bytes],
        limit: int,
        *,
        mode: int = 0,
    ) -> Entry: ...

    async def open(self, grant: bytes, job: JobId, name: str) -> OpenFile: ...

    async def list(self, grant: bytes, job: JobId, name: str = "") -> list[Entry]: ...

    async def open_own(self, grant: bytes, job: JobId, name: str) -> OpenFile: ...

    async def delete(self, grant: bytes, job: JobId, name: str) -> None: ...

    async def reopen(self, grant: bytes, job: JobId) -> None: ...

    async def drop(self, grant: bytes, job: JobId, name: str) -> None: ...

    async def remove(self, grant: bytes, job: JobId) -> None: ...


class LocalSessions:
    """Session directories on a file system mounted here, through the account's file worker."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def create(self, grant: bytes, job: JobId, files: Mapping[str, tuple[bytes, int]]) -> None:
        """Make the directory and write edged's control files; harmless to repeat."""
        await self._mkdir(grant, place(job))
        for parent in sorted({str(PurePosixPath(name).parent) for name in files} - {"."}):
            await self._mkdir(grant, place(job, parent))
        for name, (content, mode) in files.items():
            await self._write(grant, place(job, name), content, mode)

    async def _mkdir(self, grant: bytes, where: Place) -> None:
        with contextlib.suppress(Conflict):
            await self._files.mkdir(grant, where, parents=True)

    async def _write(self, grant: bytes, where: Place, content: bytes, mode: int) -> None:
        temporary = await self._files.temporary(grant, where, mode=mode)
        try:
            await asyncio.to_thread(_write_all, temporary.fd, content)
            await self._files.commit(grant, temporary.place, where, replace=True, durable=False)
        except BaseException:
            await self._files.discard(grant, temporary.place)
            raise
        finally:
            os.close(temporary.fd)

    async def put(
        self,
        grant: bytes,
        job: JobId,
        name: str,
        content: AsyncIterator[bytes],
        limit: int,
        *,
        mode: int = 0,
    ) -> Entry:
        """Receive one input; it appears whole or not at all. Raises TooLarge over ``limit`` bytes."""
        check_name(name)
        where = place(job, name)
        temporary = await self._files.temporary(grant, where, parents=True, mode=mode)
        try:
            size = 0
            async for block in content:
                size += len(block)
                _check_size(size, limit)
                await asyncio.to_thread(_write_all, temporary.fd, block)
            return await self._files.commit(grant, temporary.place, where, replace=True, durable=True)
        except BaseException:
            await self._files.discard(grant, temporary.place)
            raise
        finally:
            os.close(temporary.fd)

    async def open(self, grant: bytes, job: JobId, name: str) -> OpenFile:
        """One output, for reading."""
        check_name(name)
        return await self._files.open(grant, place(job, name))

    async def open_own(self, grant: bytes, job: JobId, name: str) -> OpenFile:
        """One of edged's own files, for reading. The job could have written anything into it."""
        return await self._files.open(grant, place(job, str(PRIVATE / name)))

    async def delete(self, grant: bytes, job: JobId, name: str) -> None:
        """Remove one file, or a directory with all below it."""
        check_name(name)
        await self._files.remove(grant, place(job, name), recursive=True)

    async def reopen(self, grant: bytes, job: JobId) -> None:
        """Make room for another run: the marker of the last one, and its outcome, go."""
        for name in (MARKER, OUTCOME):
            with contextlib.suppress(NotFound):
                await self._files.remove(grant, place(job, str(name)))

    async def list(self, grant: bytes, job: JobId, name: str = "") -> list[Entry]:
        """A directory of the session, without edged's own files."""
        if name:
            check_name(name)
        entries = await self._files.list(grant, place(job, name), limit=LISTING)
        return [entry for entry in entries if name or not entry.name.startswith(".edged")]

    async def drop(self, grant: bytes, job: JobId, name: str) -> None:
        """Remove one file. Raises NotFound."""
        check_name(name)
        await self._files.remove(grant, place(job, name))

    async def remove(self, grant: bytes, job: JobId) -> None:
        """Remove the whole directory; nothing left is no error."""
        with contextlib.suppress(NotFound):
            await self._files.remove(grant, place(job), recursive=True)


class RoutedSessions:
    """Each job's directory where its batch system has it: mounted here, or behind SSH."""

    def __init__(
        self, batch_of: Callable[[JobId], str], local: Sessions, elsewhere: Mapping[str, Sessions]
    ) -> None:
        self._batch_of = batch_of
        self._local = local
        self._elsewhere = elsewhere

    def of(self, job: JobId) -> Sessions:
        """The sessions of the job's batch system."""
        return self._elsewhere.get(self._batch_of(job), self._local)

    async def create(self, grant: bytes, job: JobId, files: Mapping[str, tuple[bytes, int]]) -> None:
        await self.of(job).create(grant, job, files)

    async def put(
        self,
        grant: bytes,
        job: JobId,
        name: str,
        content: AsyncIterator[bytes],
        limit: int,
        *,
        mode: int = 0,
    ) -> Entry:
        return await self.of(job).put(grant, job, name, content, limit, mode=mode)

    async def open(self, grant: bytes, job: JobId, name: str) -> OpenFile:
        return await self.of(job).open(grant, job, name)

    async def list(self, grant: bytes, job: JobId, name: str = "") -> list[Entry]:
        return await self.of(job).list(grant, job, name)

    async def open_own(self, grant: bytes, job: JobId, name: str) -> OpenFile:
        return await self.of(job).open_own(grant, job, name)

    async def delete(self, grant: bytes, job: JobId, name: str) -> None:
        await self.of(job).delete(grant, job, name)

    async def reopen(self, grant: bytes, job: JobId) -> None:
        await self.of(job).reopen(grant, job)

    async def drop(self, grant: bytes, job: JobId, name: str) -> None:
        await self.of(job).drop(grant, job, name)

    async def remove(self, grant: bytes, job: JobId) -> None:
        await self.of(job).remove(grant, job)


def place(job: JobId, name: str = "") -> Place:
    """Where a file of a session lies."""
    return Place(SESSIONS, f"{job}/{name}" if name else job)


async def tree(sessions: Sessions, grant: bytes, job: JobId) -> list[Entry]:
    """All files below the session, names relative to it; at most LISTING entries, DEPTH levels."""
    found: list[Entry] = []
    todo = [("", 0)]
    while todo:
        directory, depth = todo.pop()
        for entry in await sessions.list(grant, job, directory):
            name = f"{directory}/{entry.name}" if directory else entry.name
            if entry.kind is Kind.DIRECTORY and depth < DEPTH:
                todo.append((name, depth + 1))
            elif entry.kind is Kind.FILE:
                found.append(_renamed(entry, name))
            if len(found) > LISTING:
                raise BadRequest(f"more than {LISTING} files; list a directory at a time")
    return sorted(found, key=lambda entry: entry.name)


def _renamed(entry: Entry, name: str) -> Entry:
    return msgspec.structs.replace(entry, name=name)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge(f"inputs are limited to {limit} bytes")


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
