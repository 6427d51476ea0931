"""A job's session directory, reached as its account: inputs in, outputs out, control files.

Whatever lies in it is the job's own writing and is never trusted: names are checked again, types
and sizes come from the worker's stat, and nothing in it is interpreted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from edged.accounts.api import SESSIONS, Entry, Files, Kind, OpenFile, Place
from edged.errors import BadRequest, Conflict, NotFound, TooLarge
from edged.identity.words import JobId
from services.jobs.batch.script import MARKER, OUTCOME, PRIVATE
from services.jobs.policy import check_name

LISTING = 10_000
DEPTH = 16


class SessionFiles(Protocol):
    """The file calls that session directories need, as the grant's account.

    Paths are ``<job id>/…`` below the account's own sessions directory, already checked. Errors are those of
    ``edged.accounts.api.Files``. Drivers that reach a site from outside bring their own.
    """

    async def mkdir(self, grant: bytes, path: str) -> None:
        """The directory, with those above it; that it is there already is no error."""
        ...

    async def write(
        self, grant: bytes, path: str, content: AsyncIterator[bytes], limit: int, *, mode: int, durable: bool
    ) -> None:
        """A file that appears whole or not at all, with the directories above it.

        ``mode``: its permission bits, 0 for what the umask leaves. Raises TooLarge over ``limit`` bytes.
        """
        ...

    async def open(self, grant: bytes, path: str) -> OpenFile:
        """A regular file, for reading."""
        ...

    async def list(self, grant: bytes, path: str, limit: int) -> Sequence[Entry]: ...

    async def remove(self, grant: bytes, path: str, *, recursive: bool = False) -> None:
        """Raises NotFound."""
        ...


class Sessions:
    """Session directories, on the files of one place."""

    def __init__(self, files: SessionFiles) -> None:
        self.files = files

    def of(self, job: JobId) -> SessionFiles:
        """Where the job's directory is."""
        return self.files

    async def create(self, grant: bytes, job: JobId, files: Mapping[str, tuple[bytes, int]]) -> None:
        """Make the directory and write edged's control files; harmless to repeat."""
        there = self.of(job)
        await there.mkdir(grant, place(job))
        for name, (content, mode) in files.items():
            block = _once(content)
            await there.write(grant, place(job, name), block, len(content), mode=mode, durable=False)

    async def put(
        self,
        grant: bytes,
        job: JobId,
        name: str,
        content: AsyncIterator[bytes],
        limit: int,
        *,
        mode: int = 0,
    ) -> None:
        """Receive one input; it appears whole or not at all. Raises TooLarge over ``limit`` bytes."""
        check_name(name)
        await self.of(job).write(grant, place(job, name), content, limit, mode=mode, durable=True)

    async def open(self, grant: bytes, job: JobId, name: str) -> OpenFile:
        """One output, for reading."""
        check_name(name)
        return await self.of(job).open(grant, place(job, name))

    async def open_own(self, grant: bytes, job: JobId, name: str) -> OpenFile:
        """One of edged's own files, for reading. The job could have written anything into it."""
        return await self.of(job).open(grant, place(job, str(PRIVATE / name)))

    async def list(self, grant: bytes, job: JobId, name: str = "") -> list[Entry]:
        """A directory of the session, without edged's own files."""
        if name:
            check_name(name)
        entries = await self.of(job).list(grant, place(job, name), LISTING)
        return [entry for entry in entries if name or not entry.name.startswith(".edged")]

    async def delete(self, grant: bytes, job: JobId, name: str) -> None:
        """Remove one file, or a directory with all below it."""
        check_name(name)
        await self.of(job).remove(grant, place(job, name), recursive=True)

    async def drop(self, grant: bytes, job: JobId, name: str) -> None:
        """Remove one file. Raises NotFound."""
        check_name(name)
        await self.of(job).remove(grant, place(job, name))

    async def reopen(self, grant: bytes, job: JobId) -> None:
        """Make room for another run: the marker of the last one, and its outcome, go."""
        for name in (MARKER, OUTCOME):
            with contextlib.suppress(NotFound):
                await self.of(job).remove(grant, place(job, str(name)))

    async def remove(self, grant: bytes, job: JobId) -> None:
        """Remove the whole directory; nothing left is no error."""
        with contextlib.suppress(NotFound):
            await self.of(job).remove(grant, place(job), recursive=True)


class RoutedSessions(Sessions):
    """Each job's directory where its batch system has it: mounted here, or behind SSH."""

    def __init__(
        self, batch_of: Callable[[JobId], str], local: Sessions, elsewhere: Mapping[str, Sessions]
    ) -> None:
        super().__init__(local.files)
        self._batch_of = batch_of
        self._elsewhere = elsewhere

    def of(self, job: JobId) -> SessionFiles:
        """Those of the job's batch system."""
        found = self._elsewhere.get(self._batch_of(job))
        return self.files if found is None else found.files


class WorkerFiles:
    """``SessionFiles`` on a file system mounted here, through the account's file worker."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def mkdir(self, grant: bytes, path: str) -> None:
        with contextlib.suppress(Conflict):
            await self._files.mkdir(grant, Place(SESSIONS, path), parents=True)

    async def write(
        self, grant: bytes, path: str, content: AsyncIterator[bytes], limit: int, *, mode: int, durable: bool
    ) -> None:
        where, size = Place(SESSIONS, path), 0
        temporary = await self._files.temporary(grant, where, parents=True, mode=mode)
        try:
            async for block in content:
                size += len(block)
                check_size(size, limit)
                await asyncio.to_thread(_write_all, temporary.fd, block)
            await self._files.commit(grant, temporary.place, where, replace=True, durable=durable)
        except BaseException:
            await self._files.discard(grant, temporary.place)
            raise
        finally:
            os.close(temporary.fd)

    async def open(self, grant: bytes, path: str) -> OpenFile:
        return await self._files.open(grant, Place(SESSIONS, path))

    async def list(self, grant: bytes, path: str, limit: int) -> Sequence[Entry]:
        return await self._files.list(grant, Place(SESSIONS, path), limit=limit)

    async def remove(self, grant: bytes, path: str, *, recursive: bool = False) -> None:
        await self._files.remove(grant, Place(SESSIONS, path), recursive=recursive)


def place(job: JobId, name: str = "") -> str:
    """Where a file of a session lies, below the account's sessions directory."""
    return f"{job}/{name}" if name else job


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


def check_size(size: int, limit: int) -> None:
    """Raises TooLarge."""
    if size > limit:
        raise TooLarge(f"inputs are limited to {limit} bytes")


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
