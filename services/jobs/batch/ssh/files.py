"""Session directories over SFTP: inputs in, outputs out, ranges and tails, in bounded memory.

The directory belongs to the job and is never trusted: only regular files are opened, and only where the
path, resolved on the far side, still lies in the session.
"""

from __future__ import annotations

import asyncio
import secrets
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import PurePosixPath
from typing import TypeVar

import asyncssh
from asyncssh.constants import FXF_CREAT, FXF_EXCL, FXF_READ, FXF_WRITE

from edged.accounts.api import Entry, Kind, OpenFile
from edged.errors import (
    Conflict,
    Denied,
    EdgeError,
    NoSpace,
    NotFound,
    TooLarge,
    Unavailable,
    Unsupported,
)
from edged.identity.grants import peek
from edged.identity.words import Action, JobId
from edged.lifecycle import Background
from services.jobs.batch.script import MARKER, OUTCOME, PRIVATE
from services.jobs.batch.ssh.links import Link, Links, quietly_closed
from services.jobs.policy import check_name

T = TypeVar("T")

LISTING = 10_000
DEPTH = 64
Opened = tuple[Link, asyncssh.SFTPClientFile, Entry]
Again = Callable[[], Awaitable[Opened]]

_NAMES = 100_000  # entries of one tree that are removed in one go


class RemoteFile(OpenFile):
    """An output, open on the far side. ``fd`` is none: read it by ``read``."""

    def __init__(
        self, files: SftpSessions, link: Link, handle: asyncssh.SFTPClientFile, entry: Entry, again: Again
    ) -> None:
        super().__init__(-1, entry)
        self._files = files
        self._again = again
        self._hold(link, handle)

    async def read(self, count: int, offset: int) -> bytes:
        """At most ``count`` bytes from ``offset``; fewer only at the end. Raises Unavailable, NotFound."""
        if not self._link.fresh():  # its certificate ends: go on over another connection
            link, handle, _ = await self._again()
            self.close()
            self._hold(link, handle)
        async with self._files.guarded(self._link):
            data = await self._handle.read(count, offset)
        return data if isinstance(data, bytes) else data.encode()

    def _hold(self, link: Link, handle: asyncssh.SFTPClientFile) -> None:
        link.users += 1
        self._link, self._handle = link, handle

    def close(self) -> None:
        """Hand the handle back; the connection may be gone."""
        self._link.users -= 1
        self._files.later(quietly_closed(self._handle))


class SftpSessions:
    """``services.jobs.sessions.Sessions`` for a cluster behind a login node."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._stall_s = links.cluster.stall_s
        self._tasks: Background | None = None

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with Background() as work:
            self._tasks = work
            yield
            self._tasks = None

    async def create(self, grant: bytes, job: JobId, files: Mapping[str, tuple[bytes, int]]) -> None:
        """Make the directory and write edged's control files; harmless to repeat."""
        async with self._sftp(grant, Action.JOB_STAGE) as (link, sftp):
            root = self._root(grant, job)
            parents = {str(PurePosixPath(name).parent) for name in files}
            for folder in (root, *sorted(f"{root}/{parent}" for parent in parents - {"."})):
                await self._folder(link, sftp, folder)
            for name, (content, mode) in files.items():
                await self._write(link, sftp, f"{root}/{name}", content, mode)

    async def _folder(self, link: Link, sftp: asyncssh.SFTPClient, path: str) -> None:
        """The directory, with those above it; the usual case is one request."""
        with suppress(Conflict, NotFound, Unavailable):
            await self._step(link, sftp.mkdir(path))
            return
        await self._step(link, sftp.makedirs(path, exist_ok=True))

    async def _write(
        self, link: Link, sftp: asyncssh.SFTPClient, path: str, content: bytes, mode: int
    ) -> None:
        async with self._appearing(link, sftp, path, mode) as handle:
            await self._step(link, handle.write(content, 0))

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
        """Receive one input; it appears whole or not at all. Raises TooLarge over ``limit`` bytes.

        A long upload goes on over another connection when the first one's certificate ends.
        """
        check_name(name)
        path = PurePosixPath(f"{self._root(grant, job)}/{name}")
        part = f"{path.parent}/.{path.name[:64]}.edged-{secrets.token_hex(6)}"
        blocks, size, more = aiter(content), 0, True
        flags = FXF_WRITE | FXF_CREAT | FXF_EXCL
        while more:
            async with self._sftp(grant, Action.JOB_STAGE) as (link, sftp):
                try:
                    if flags & FXF_CREAT:
                        await self._folder(link, sftp, str(path.parent))
                    attributes = asyncssh.SFTPAttrs(permissions=mode or 0o600)
                    opening = sftp.open(part, flags, attributes, encoding=None, block_size=65536)
                    async with self._closing(link, await self._step(link, opening)) as handle:
                        size, more = await self._filled(link, handle, blocks, size, limit)
                    if not more:
                        await self._step(link, sftp.posix_rename(part, str(path)))
                        return entry(name, await self._step(link, sftp.lstat(str(path))))
                except BaseException as error:
                    await self._given_up(link, sftp, part, error)
                    raise
            flags = FXF_WRITE
        raise AssertionError("the loop ends by returning")

    async def _filled(
        self,
        link: Link,
        handle: asyncssh.SFTPClientFile,
        blocks: AsyncIterator[bytes],
        size: int,
        limit: int,
    ) -> tuple[int, bool]:
        """Write until all is there, or the connection is to be left: the size, and whether there is more."""
        async for block in blocks:
            if size + len(block) > limit:
                raise TooLarge(f"inputs are limited to {limit} bytes")
            await self._step(link, handle.write(block, size))
            size += len(block)
            if not link.fresh():
                return size, True
        await self._durable(link, handle)
        return size, False

    @asynccontextmanager
    async def _closing(
        self, link: Link, handle: asyncssh.SFTPClientFile
    ) -> AsyncIterator[asyncssh.SFTPClientFile]:
        try:
            yield handle
        finally:
            await self._step(link, handle.close())

    async def _given_up(self, link: Link, sftp: asyncssh.SFTPClient, part: str, error: BaseException) -> None:
        """Remove what is half there. Raises NoSpace instead of ``error`` when the disk is full."""
        if link.closed:
            return
        self.later(self._removed(sftp, part))
        if isinstance(error, Unavailable):
            await self._refuse_full(link, sftp, str(PurePosixPath(part).parent), error)

    async def _durable(self, link: Link, handle: asyncssh.SFTPClientFile) -> None:
        """fsync@openssh.com, where the server has it."""
        with suppress(Unsupported):
            await self._step(link, handle.fsync())

    @asynccontextmanager
    async def _appearing(
        self, link: Link, sftp: asyncssh.SFTPClient, path: str, mode: int
    ) -> AsyncIterator[asyncssh.SFTPClientFile]:
        """A new file beside ``path`` that takes its place at the end, or leaves nothing."""
        parent, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
        temporary = f"{parent}/.{name[:64]}.edged-{secrets.token_hex(6)}"
        attributes = asyncssh.SFTPAttrs(permissions=mode)
        handle = await self._step(
            link,
            sftp.open(
                temporary, FXF_WRITE | FXF_CREAT | FXF_EXCL, attributes, encoding=None, block_size=65536
            ),
        )
        try:
            async with self._closing(link, handle):
                yield handle
            await self._step(link, sftp.posix_rename(temporary, path))
        except BaseException as error:
            await self._given_up(link, sftp, temporary, error)
            raise

    async def _removed(self, sftp: asyncssh.SFTPClient, path: str) -> None:
        with suppress(OSError, asyncssh.Error, TimeoutError):
            async with asyncio.timeout(self._stall_s):
                await sftp.remove(path)

    async def _refuse_full(self, link: Link, sftp: asyncssh.SFTPClient, where: str, error: EdgeError) -> None:
        """SFTP version 3 has one word for every failure: ask whether the disk is full."""
        try:
            space = await self._step(link, sftp.statvfs(where))
        except EdgeError:
            return
        if space.bavail == 0 or space.favail == 0:
            raise NoSpace("no space on the far side", detail=where) from error

    async def open(self, grant: bytes, job: JobId, name: str) -> OpenFile:
        """One output, for reading."""
        check_name(name)
        return await self._open(grant, job, name)

    async def open_own(self, grant: bytes, job: JobId, name: str) -> OpenFile:
        """One of edged's own files, for reading. The job could have written anything into it."""
        return await self._open(grant, job, str(PRIVATE / name))

    async def _open(self, grant: bytes, job: JobId, name: str) -> OpenFile:
        link, handle, found = await self._opened(grant, job, name)
        return RemoteFile(self, link, handle, found, partial(self._opened, grant, job, name))

    async def _opened(self, grant: bytes, job: JobId, name: str) -> Opened:
        root = self._root(grant, job)
        path = f"{root}/{name}"
        async with self._sftp(grant, Action.JOB_POLL) as (link, sftp):
            if entry(name, await self._step(link, sftp.lstat(path))).kind is not Kind.FILE:
                raise Unsupported("not a regular file")
            await self._inside(link, sftp, root, str(PurePosixPath(path).parent))
            handle = await self._step(link, sftp.open(path, FXF_READ, encoding=None, block_size=65536))
            try:
                return link, handle, entry(name, await self._step(link, handle.stat()))
            except BaseException:
                self.later(quietly_closed(handle))
                raise

    async def _inside(self, link: Link, sftp: asyncssh.SFTPClient, root: str, folder: str) -> None:
        """Raises Denied when a link leads out of the session."""
        if folder == root:
            return
        true_root = str(await self._step(link, sftp.realpath(root)))
        true = str(await self._step(link, sftp.realpath(folder)))
        if true != true_root and not true.startswith(true_root + "/"):
            raise Denied("a link leads out of the session directory")

    async def list(self, grant: bytes, job: JobId, name: str = "") -> list[Entry]:
        """A directory of the session, without edged's own files."""
        if name:
            check_name(name)
        root = self._root(grant, job)
        path = f"{root}/{name}" if name else root
        async with self._sftp(grant, Action.JOB_POLL) as (link, sftp):
            if name:
                await self._inside(link, sftp, root, path)
            found = [one async for one in self._names(link, sftp, path, LISTING)]
        return [one for one in found if name or not one.name.startswith(".edged")]

    async def _names(
        self, link: Link, sftp: asyncssh.SFTPClient, path: str, limit: int
    ) -> AsyncIterator[Entry]:
        count = 0
        async with self.guarded(link):
            async for found in sftp.scandir(path):
                if found.filename in (".", ".."):
                    continue
                count += 1
                if count > limit:
                    raise TooLarge(f"more than {limit} entries in one directory")
                yield entry(str(found.filename), found.attrs)

    async def delete(self, grant: bytes, job: JobId, name: str) -> None:
        """Remove one file, or a directory with all below it."""
        check_name(name)
        async with self._sftp(grant, Action.JOB_CLEAN) as (link, sftp):
            root = self._root(grant, job)
            await self._inside(link, sftp, root, str(PurePosixPath(f"{root}/{name}").parent))
            await self._remove(link, sftp, f"{root}/{name}")

    async def drop(self, grant: bytes, job: JobId, name: str) -> None:
        """Remove one file. Raises NotFound."""
        check_name(name)
        async with self._sftp(grant, Action.JOB_CLEAN) as (link, sftp):
            await self._step(link, sftp.remove(f"{self._root(grant, job)}/{name}"))

    async def reopen(self, grant: bytes, job: JobId) -> None:
        """Make room for another run: the marker of the last one, and its outcome, go."""
        async with self._sftp(grant, Action.JOB_STAGE) as (link, sftp):
            for name in (MARKER, OUTCOME):
                with suppress(NotFound):
                    await self._step(link, sftp.remove(f"{self._root(grant, job)}/{name}"))

    async def remove(self, grant: bytes, job: JobId) -> None:
        """Remove the whole directory; nothing left is no error."""
        async with self._sftp(grant, Action.JOB_CLEAN) as (link, sftp):
            with suppress(NotFound):
                await self._remove(link, sftp, self._root(grant, job))

    async def _remove(self, link: Link, sftp: asyncssh.SFTPClient, path: str, depth: int = 0) -> None:
        """Never through a link: what is no directory is unlinked."""
        if depth > DEPTH:
            raise TooLarge(f"directories nested more than {DEPTH} deep")
        if entry("", await self._step(link, sftp.lstat(path))).kind is not Kind.DIRECTORY:
            await self._step(link, sftp.remove(path))
            return
        for one in [found async for found in self._names(link, sftp, path, _NAMES)]:
            below = f"{path}/{one.name}"
            if one.kind is Kind.DIRECTORY:
                await self._remove(link, sftp, below, depth + 1)
            else:
                await self._step(link, sftp.remove(below))
        await self._step(link, sftp.rmdir(path))

    # -- how it is done -------------------------------------------------------------------------------

    def _root(self, grant: bytes, job: JobId) -> str:
        sessions = self._links.cluster.sessions.replace("{account}", peek(grant).account)
        return f"{sessions.rstrip('/')}/{job}"

    @asynccontextmanager
    async def _sftp(self, grant: bytes, action: Action) -> AsyncIterator[tuple[Link, asyncssh.SFTPClient]]:
        async with self._links.link(grant, action) as link:
            async with self.guarded(link):
                sftp = await link.sftp()
            yield link, sftp

    async def _step(self, link: Link, work: Awaitable[T]) -> T:
        """One request, answered or given up."""
        async with self.guarded(link):
            return await work

    @asynccontextmanager
    async def guarded(self, link: Link) -> AsyncIterator[None]:
        """Errors of SFTP as ours. A request that is never answered ends the connection: it is half dead."""
        try:
            async with asyncio.timeout(self._stall_s):
                yield
        except TimeoutError:
            link.close()
            raise Unavailable("the SFTP server does not answer") from None
        except asyncssh.SFTPError as error:
            raise translated(error) from error
        except (OSError, asyncssh.Error) as error:
            link.close()
            raise Unavailable("the connection to the login node was lost", detail=str(error)) from error

    def later(self, work: Coroutine[None, None, None]) -> None:
        """Something nobody waits for."""
        if self._tasks is None:
            work.close()
        else:
            self._tasks.create_task(work)


def translated(error: asyncssh.SFTPError) -> EdgeError:
    """The error of ours that an SFTP status means."""
    match error:
        case asyncssh.SFTPNoSuchFile() | asyncssh.SFTPNoSuchPath():
            return NotFound("no such file")
        case asyncssh.SFTPPermissionDenied() | asyncssh.SFTPWriteProtect():
            return Denied("the account may not do this there")
        case asyncssh.SFTPFileAlreadyExists() | asyncssh.SFTPDirNotEmpty():
            return Conflict("it exists already")
        case asyncssh.SFTPNoSpaceOnFilesystem() | asyncssh.SFTPQuotaExceeded():
            return NoSpace("no space on the far side")
        case asyncssh.SFTPOpUnsupported():
            return Unsupported("the SFTP server cannot do this")
        case _:
            return Unavailable("the file operation failed on the far side", detail=str(error))


def entry(name: str, attributes: asyncssh.SFTPAttrs) -> Entry:
    """A stat of the far side. Version 3 of the protocol knows no inodes and no times of change."""
    mode = attributes.permissions or 0
    kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.LINK}
    mtime_ns = int(attributes.mtime or 0) * 1_000_000_000
    return Entry(
        name=name,
        kind=kinds.get(stat.S_IFMT(mode), Kind.OTHER),
        size=attributes.size or 0,
        mtime_ns=mtime_ns,
        ctime_ns=mtime_ns,
        inode=0,
        device=0,
        mode=mode,
        uid=attributes.uid or 0,
        gid=attributes.gid or 0,
        links=attributes.nlink or 1,
    )
