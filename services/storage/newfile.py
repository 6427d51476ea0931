"""A file that is not there yet: written invisibly in its directory, then it appears whole or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from edged.accounts import statx
from edged.accounts.api import Entry, Files, Place, Temporary
from edged.errors import EdgeError, Unavailable
from edged.logs import get_logger
from services.storage import records
from services.storage.digests import Digests
from services.storage.disk import Disk
from services.storage.exchange import Exchange
from services.storage.namespace import Target

log = get_logger("edged.storage.newfile")

AGAIN_S = (0.0, 0.2, 1.0, 5.0)


class NewFile:
    """``fd`` is open for writing. It may take longer than the token lives."""

    def __init__(
        self, exchange: Exchange, files: Files, target: Target, temporary: Temporary, *, durable: bool
    ) -> None:
        self.fd = temporary.fd
        self.place = temporary.place
        self.committed = False
        self._exchange = exchange
        self._files = files
        self._target = target
        self._durable = durable

    async def commit(
        self,
        known: Digests,
        size: int,
        *,
        replace: bool,
        mtime_ns: int | None = None,
        attributes: Mapping[str, bytes] | None = None,
    ) -> Entry:
        """Let it appear, with its digests beside it. Raises Conflict when it exists and must not be replaced."""
        now_ns = time.time_ns()
        mtime_ns = now_ns if mtime_ns is None else mtime_ns
        facts = statx.known(self.fd)
        inode = facts.inode if facts is not None else 0
        kept = records.to_keep(known, size, inode, mtime_ns, now_ns) if known else {}
        entry = await self._files.commit(
            self._exchange.grant,
            self.place,
            self._target.place,
            replace=replace,
            durable=self._durable,
            attributes={**kept, **(attributes or {})},
            mtime_ns=mtime_ns,
        )
        self.committed = True
        return entry


@asynccontextmanager
async def new_file(
    exchange: Exchange, files: Files, disk: Disk, target: Target, *, durable: bool, parents: bool = False
) -> AsyncIterator[NewFile]:
    """A NewFile for the block, gone at its end unless committed. Raises EdgeError."""
    temporary = await files.temporary(exchange.grant, target.place, parents=parents)
    new = NewFile(exchange, files, target, temporary, durable=durable)
    try:
        with exchange.lasting(target):
            yield new
    finally:
        disk.close(new.fd)
        if not new.committed:
            await asyncio.shield(_discard(exchange, files, new.place))


async def _discard(exchange: Exchange, files: Files, place: Place) -> None:
    """Also when the worker was just killed and its follower starts; at last it is left to the sweeper."""
    why = ""
    for pause_s in AGAIN_S:
        await asyncio.sleep(pause_s)
        try:
            await files.discard(exchange.grant, place)
        except Unavailable as error:
            why = str(error)
        except EdgeError as error:
            why = str(error)
            break
        else:
            return
    log.warning("unfinished upload left behind", extra={"path": place.path, "reason": why})
