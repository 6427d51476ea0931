"""The files of session directories over SFTP: inputs in, outputs out, in bounded memory.

The directory belongs to the job and is never trusted: only regular files are opened, and only where the
path, resolved on the far side, still lies in the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import PurePosixPath

import asyncssh
from asyncssh.constants import FXF_READ

from edged.accounts.api import Entry, Kind, OpenFile
from edged.errors import Conflict, Denied, NotFound, TooLarge, Unavailable, Unsupported
from edged.identity.grants import peek
from edged.identity.words import Action
from services.jobs.batch.ssh.links import Link, Links, quietly_closed
from services.jobs.batch.ssh.sftp import BLOCK, Sftp, entry
from services.jobs.batch.ssh.uploads import Upload

DEPTH = 64
NAMES = 100_000  # entries of one directory that are removed in one go

Opened = tuple[Link, asyncssh.SFTPClientFile, Entry]
Again = Callable[[], Awaitable[Opened]]


class RemoteFile(OpenFile):
    """An output, open on the far side. ``fd`` is none: read it by ``read``."""

    def __init__(
        self, sftp: Sftp, link: Link, handle: asyncssh.SFTPClientFile, found: Entry, again: Again
    ) -> None:
        super().__init__(-1, found)
        self._sftp = sftp
        self._again = again
        self._hold(link, handle)

    async def read(self, count: int, offset: int) -> bytes:
        """At most ``count`` bytes from ``offset``; fewer only at the end. Raises Unavailable, NotFound."""
        if not self._link.fresh():  # its certificate ends: go on over another connection
            link, handle, _ = await self._again()
            self.close()
            self._hold(link, handle)
        async with self._sftp.guarded(self._link):
            data = await self._handle.read(count, offset)
        return data if isinstance(data, bytes) else data.encode()

    def _hold(self, link: Link, handle: asyncssh.SFTPClientFile) -> None:
        link.users += 1
        self._link, self._handle = link, handle

    def close(self) -> None:
        """Hand the handle back; the connection may be gone."""
        self._link.users -= 1
        self._sftp.later(quietly_closed(self._handle))


class SftpFiles:
    """``services.jobs.sessions.SessionFiles`` for a cluster behind a login node."""

    def __init__(self, links: Links) -> None:
        self._sftp = Sftp(links)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with self._sftp.running(tasks):
            yield

    async def mkdir(self, grant: bytes, path: str) -> None:
        """See ``SessionFiles``; the usual case is one request."""
        async with self._sftp.session(grant, Action.JOB_STAGE) as (link, client):
            there = self._there(grant, path)
            with suppress(Conflict, NotFound, Unavailable):
                await self._sftp.step(link, client.mkdir(there))
                return
            await self._sftp.step(link, client.makedirs(there, exist_ok=True))

    async def write(
        self, grant: bytes, path: str, content: AsyncIterator[bytes], limit: int, *, mode: int, durable: bool
    ) -> None:
        upload = Upload(self._sftp, PurePosixPath(self._there(grant, path)), limit, mode, durable)
        try:
            await upload.send(grant, content)
        except NotFound:
            if upload.size:  # somebody removed the directory meanwhile
                raise
            await self.mkdir(grant, str(PurePosixPath(path).parent))
            await upload.send(grant, content)

    async def open(self, grant: bytes, path: str) -> OpenFile:
        link, handle, found = await self._opened(grant, path)
        return RemoteFile(self._sftp, link, handle, found, partial(self._opened, grant, path))

    async def _opened(self, grant: bytes, path: str) -> Opened:
        there, name = self._there(grant, path), path.partition("/")[2]
        step = self._sftp.step
        async with self._sftp.session(grant, Action.JOB_POLL) as (link, client):
            if entry(name, await step(link, client.lstat(there))).kind is not Kind.FILE:
                raise Unsupported("not a regular file")
            await self._inside(link, client, grant, str(PurePosixPath(path).parent))
            handle = await step(link, client.open(there, FXF_READ, encoding=None, block_size=BLOCK))
            try:
                return link, handle, entry(name, await step(link, handle.stat()))
            except BaseException:
                self._sftp.later(quietly_closed(handle))
                raise

    async def list(self, grant: bytes, path: str, limit: int) -> list[Entry]:
        async with self._sftp.session(grant, Action.JOB_POLL) as (link, client):
            await self._inside(link, client, grant, path)
            return [one async for one in self._names(link, client, self._there(grant, path), limit)]

    async def remove(self, grant: bytes, path: str, *, recursive: bool = False) -> None:
        async with self._sftp.session(grant, Action.JOB_CLEAN) as (link, client):
            await self._inside(link, client, grant, str(PurePosixPath(path).parent))
            if recursive:
                await self._remove(link, client, self._there(grant, path))
            else:
                await self._sftp.step(link, client.remove(self._there(grant, path)))

    async def _remove(self, link: Link, client: asyncssh.SFTPClient, there: str, depth: int = 0) -> None:
        """Never through a link: what is no directory is unlinked."""
        if depth > DEPTH:
            raise TooLarge(f"directories nested more than {DEPTH} deep")
        if entry("", await self._sftp.step(link, client.lstat(there))).kind is not Kind.DIRECTORY:
            await self._sftp.step(link, client.remove(there))
            return
        for one in [found async for found in self._names(link, client, there, NAMES)]:
            below = f"{there}/{one.name}"
            if one.kind is Kind.DIRECTORY:
                await self._remove(link, client, below, depth + 1)
            else:
                await self._sftp.step(link, client.remove(below))
        await self._sftp.step(link, client.rmdir(there))

    async def _names(
        self, link: Link, client: asyncssh.SFTPClient, there: str, limit: int
    ) -> AsyncIterator[Entry]:
        count = 0
        async with self._sftp.guarded(link):
            async for found in client.scandir(there):
                if found.filename in (".", ".."):
                    continue
                count += 1
                if count > limit:
                    raise TooLarge(f"more than {limit} entries in one directory")
                yield entry(str(found.filename), found.attrs)

    async def _inside(self, link: Link, client: asyncssh.SFTPClient, grant: bytes, folder: str) -> None:
        """Raises Denied when a link leads out of the session that ``folder`` lies in."""
        session, slash, _ = folder.partition("/")
        if not slash:  # the session itself, or what it lies in: made by us
            return
        root = str(await self._sftp.step(link, client.realpath(self._there(grant, session))))
        true = str(await self._sftp.step(link, client.realpath(self._there(grant, folder))))
        if true != root and not true.startswith(root + "/"):
            raise Denied("a link leads out of the session directory")

    def _there(self, grant: bytes, path: str) -> str:
        """The path on the far side."""
        sessions = self._sftp.cluster.sessions.replace("{account}", peek(grant).account)
        return f"{sessions.rstrip('/')}/{path}"
