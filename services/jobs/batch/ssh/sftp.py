"""SFTP on a login node's connection: every request is answered in time or given up, errors are edged's own."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

import asyncssh

from edged.accounts.api import Entry, Kind
from edged.errors import Conflict, Denied, EdgeError, NoSpace, NotFound, Unavailable, Unsupported
from edged.identity.words import Action
from edged.lifecycle import Background
from services.jobs.batch.ssh.links import Link, Links

T = TypeVar("T")

BLOCK = 65536  # of one request; servers refuse more than 256 KiB


class Sftp:
    """SFTP as any account of one cluster. It lives while ``running``."""

    def __init__(self, links: Links) -> None:
        self.cluster = links.cluster
        self._links = links
        self._stall_s = links.cluster.stall_s
        self._tasks: Background | None = None

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with Background() as work:
            self._tasks = work
            yield
            self._tasks = None

    @asynccontextmanager
    async def session(self, grant: bytes, action: Action) -> AsyncIterator[tuple[Link, asyncssh.SFTPClient]]:
        """A connection as the grant's account and its SFTP session. Raises Unavailable, Denied."""
        async with self._links.link(grant, action) as link:
            async with self.guarded(link):
                sftp = await link.sftp()
            yield link, sftp

    async def step(self, link: Link, work: Awaitable[T]) -> T:
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
