"""A file that appears on the far side whole or not at all, though connections end while it is sent."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

import asyncssh
from asyncssh.constants import FXF_CREAT, FXF_EXCL, FXF_WRITE

from edged.errors import EdgeError, NoSpace, Unavailable, Unsupported
from edged.identity.words import Action
from services.jobs.batch.ssh.links import Link
from services.jobs.batch.ssh.sftp import BLOCK, Sftp
from services.jobs.sessions import check_size

PRIVATE_MODE = 0o600


@dataclass(slots=True)
class Upload:
    """One file to ``path``. A long one goes on over another connection."""

    sftp: Sftp
    path: PurePosixPath
    limit: int
    mode: int
    durable: bool
    size: int = 0
    held: bytes | None = None

    async def send(self, grant: bytes, content: AsyncIterator[bytes]) -> None:
        """Raises TooLarge, NoSpace, Unavailable; nothing is left then. NotFound: its directory is not there."""
        part = f"{self.path.parent}/.{self.path.name[:64]}.edged-{secrets.token_hex(6)}"
        blocks, flags, more = aiter(content), FXF_WRITE | FXF_CREAT | FXF_EXCL, True
        while more:
            async with self.sftp.session(grant, Action.JOB_STAGE) as (link, client):
                try:
                    async with self._open(link, client, part, flags) as handle:
                        more = await self._fill(link, handle, blocks)
                    if not more:
                        await self.sftp.step(link, client.posix_rename(part, str(self.path)))
                except BaseException as error:
                    await self._give_up(link, client, part, error)
                    raise
            flags = FXF_WRITE

    @asynccontextmanager
    async def _open(
        self, link: Link, client: asyncssh.SFTPClient, part: str, flags: int
    ) -> AsyncIterator[asyncssh.SFTPClientFile]:
        attributes = asyncssh.SFTPAttrs(permissions=self.mode or PRIVATE_MODE)
        opening = client.open(part, flags, attributes, encoding=None, block_size=BLOCK)
        handle = await self.sftp.step(link, opening)
        try:
            yield handle
        finally:
            if not link.closed:
                await self.sftp.step(link, handle.close())

    async def _fill(self, link: Link, handle: asyncssh.SFTPClientFile, blocks: AsyncIterator[bytes]) -> bool:
        """Write until all is there, or the connection is to be left: whether there is more.

        It may have ended while a block was waited for; then that block is the next connection's.
        """
        while (block := await anext(blocks, None) if self.held is None else self.held) is not None:
            check_size(self.size + len(block), self.limit)
            self.held = block
            if not link.fresh():
                return True
            await self.sftp.step(link, handle.write(block, self.size))
            self.size += len(block)
            self.held = None
        if not link.fresh():
            return True  # nothing but to make it durable
        if self.durable:
            with suppress(Unsupported):  # fsync@openssh.com, where the server has it
                await self.sftp.step(link, handle.fsync())
        return False

    async def _give_up(
        self, link: Link, client: asyncssh.SFTPClient, part: str, error: BaseException
    ) -> None:
        """Remove what is half there. Raises NoSpace instead of ``error`` when the disk is full."""
        if link.closed:
            return
        self.sftp.later(self._removed(client, part))
        if not isinstance(error, Unavailable):
            return
        # SFTP version 3 has one word for every failure: ask whether the disk is full
        try:
            space = await self.sftp.step(link, client.statvfs(str(self.path.parent)))
        except EdgeError:
            return
        if space.bavail == 0 or space.favail == 0:
            raise NoSpace("no space on the far side", detail=str(self.path.parent)) from error

    async def _removed(self, client: asyncssh.SFTPClient, part: str) -> None:
        with suppress(OSError, asyncssh.Error, TimeoutError):
            async with asyncio.timeout(self.sftp.cluster.stall_s):
                await client.remove(part)
