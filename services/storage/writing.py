"""PUT: into an invisible temporary file, digests while bytes pass, and it appears whole or not at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from aiohttp import ClientPayloadError, web
from aiohttp.web_protocol import RequestPayloadError

from edged.accounts.api import Entry, Files
from edged.accounts.faults import of_os
from edged.config.storage import Storage
from edged.errors import BadRequest, Conflict, Denied, NotFound, PreconditionFailed, TooLarge
from services.storage import digests
from services.storage.access import CREATE, MODIFY
from services.storage.conditions import etag
from services.storage.disk import Disk
from services.storage.exchange import Exchange
from services.storage.faults import MethodRefused
from services.storage.guard import Guard
from services.storage.namespace import Target
from services.storage.newfile import NewFile, new_file
from services.storage.properties import is_directory
from services.storage.sending import Connection
from services.storage.transfers import Transfer, Transfers

SMALLEST_BLOCK, LARGEST_BLOCK = 64 * 1024, 1 << 20
SMALL = 64 * 1024  # written without a thread: goes to the page cache


class Memory:
    """The bytes all uploads hold before they are written; ``limit`` is for what they hold and what is joined."""

    __slots__ = ("_comfortable", "held")

    def __init__(self, limit: int) -> None:
        self.held = 0
        self._comfortable = limit // 2

    def block(self) -> int:
        """Bytes to gather before a write: large ones are cheapest, small ones when many come in at once."""
        return LARGEST_BLOCK if self.held < self._comfortable else SMALLEST_BLOCK


class Intake:
    """The receiving end of one file: digests and disk writes in a thread, one block behind the network.

    ``settle`` ends its use, also when it failed.
    """

    def __init__(
        self, fd: int, disk: Disk, algorithms: Sequence[str], memory: Memory, *, at: int = 0
    ) -> None:
        """``at``: where in the file the first byte belongs."""
        self.size = 0
        self._at = at
        self._fd = fd
        self._disk = disk
        self._digests = digests.Several(algorithms)
        self._memory = memory
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._writing: asyncio.Future[None] | None = None

    async def feed(self, data: bytes) -> None:
        """Take some bytes; waits while the disk is behind."""
        self._held.append(data)
        self._held_bytes += len(data)
        self._memory.held += len(data)
        self.size += len(data)
        if self._held_bytes >= self._memory.block():
            await self._flush()

    async def finish(self) -> dict[str, bytes]:
        """All bytes are in: write the rest, and tell the digests."""
        if self.size <= SMALL and self._writing is None and await self._disk.is_local(self._fd):
            self._put(self._take())
        else:
            await self._flush()
            await self.settle()
        return self._digests.results()

    async def settle(self) -> None:
        """Until no thread uses the descriptor any more. Raises what the disk said."""
        while self._writing is not None:
            writing, self._writing = self._writing, None
            await asyncio.shield(writing)

    async def _flush(self) -> None:
        await self.settle()
        if self._held:
            chunks = self._take()
            self._writing = asyncio.ensure_future(self._disk.run((self._fd,), self._put, chunks))

    def _take(self) -> list[bytes]:
        chunks, self._held = self._held, []
        self._memory.held -= self._held_bytes
        self._held_bytes = 0
        return chunks

    def drop(self) -> None:
        """Forget what is not written: the upload failed, or all of it is."""
        self._take()

    def _put(self, chunks: list[bytes]) -> None:
        """Joined first: one long write costs the kernel a quarter of a vector of the network's short pieces
        (ext4 on Linux 6.18, .4 against 2.3 CPU s/GiB), and the copy is little beside that."""
        data = b"".join(chunks)
        chunks.clear()
        self._digests.update(data)
        self._at = write_all(self._fd, data, self._at)


def write_all(fd: int, data: bytes, at: int) -> int:
    """Write all of it from offset ``at``; the offset after it. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        at += done
        view = view[done:]
    return at


class Writing:
    """Uploads."""

    def __init__(
        self,
        config: Storage,
        files: Files,
        disk_of: Callable[[Target], Disk],
        transfers: Transfers,
        guard: Guard,
        *,
        memory: Memory,
    ) -> None:
        self._config = config
        self._files = files
        self._disk_of = disk_of
        self._transfers = transfers
        self._guard = guard
        self._memory = memory

    async def put(self, exchange: Exchange) -> web.StreamResponse:
        """201 for a new file, 200 for a replaced one (Rucio takes no 204)."""
        exchange.require(CREATE)
        _refuse_partial(exchange)
        announced = digests.announced(exchange.headers)
        before = await self._admit(exchange)
        replace = before is not None or (
            exchange.allows(MODIFY) and exchange.headers.get("If-None-Match", "").strip() != "*"
        )
        disk, target = self._disk_of(exchange.target), exchange.target
        parents = target.export.create_parents
        try:
            async with new_file(
                exchange, self._files, disk, target, durable=self._config.durable, parents=parents
            ) as new:
                size, found = await self._receive(exchange, new, announced)
                entry = await self._commit(exchange, new, size, found, replace=replace)
        except NotFound as error:
            raise Conflict("the parent collection does not exist") from error
        shown = digests.answer_headers(digests.ADLER32, None, found)
        return Connection(exchange.request).reply(
            201 if before is None else 200, [("Content-Length", "0"), ("ETag", etag(entry)), *shown.items()]
        )

    async def _admit(self, exchange: Exchange) -> Entry | None:
        """Everything that can be refused before a byte is taken. What is there now is returned."""
        if exchange.target.collection or not exchange.target.path:
            raise MethodRefused("a collection cannot be uploaded", allow="OPTIONS, PROPFIND, MKCOL, DELETE")
        before = await exchange.look()
        if before is not None and is_directory(before):
            raise MethodRefused("a collection is in the way", allow="OPTIONS, PROPFIND, DELETE")
        exchange.check_conditions(before)
        if before is not None and not exchange.allows(MODIFY):
            raise Denied("it exists, and the token may create but not modify")
        await self._guard.change(exchange, exchange.target, member=before is None)
        length = exchange.request.content_length
        if length is not None and length > self._config.upload:
            raise TooLarge(f"file over {self._config.upload} bytes")
        return before

    async def _receive(
        self, exchange: Exchange, new: NewFile, announced: digests.Digests
    ) -> tuple[int, dict[str, bytes]]:
        """The body, onto the disk: its size and digests. Raises BadRequest when it is not what was announced."""
        connection = Connection(exchange.request)
        if exchange.headers.get("Expect", "").lower() == "100-continue":
            connection.continue_()
        algorithms = (digests.ADLER32, *self._config.digests, *announced)
        intake = Intake(new.fd, self._disk_of(exchange.target), algorithms, self._memory)
        verdict = exchange.verdict
        with self._transfers.running(
            "write", verdict.principal, verdict.account, connection.abort
        ) as transfer:
            try:
                await self._take_body(exchange.request, intake, transfer)
                found = await intake.finish()
            except OSError as error:
                raise of_os(error) from error
            finally:
                await settled(intake)
        for algorithm, value in announced.items():
            if found[algorithm] != value:
                raise BadRequest(f"the body's {algorithm} is not the one announced: nothing was stored")
        return intake.size, found

    async def _take_body(self, request: web.BaseRequest, intake: Intake, transfer: Transfer) -> None:
        content, limit = request.content, self._config.upload
        try:
            while data := await content.readany():
                transfer.moved += len(data)
                if transfer.moved > limit:
                    raise TooLarge(f"file over {limit} bytes")
                await intake.feed(data)
        except (ClientPayloadError, RequestPayloadError) as error:
            raise BadRequest("the body ended early", detail=str(error)) from error
        if request.content_length is not None and intake.size != request.content_length:
            raise BadRequest("the body ended early")

    async def _commit(
        self, exchange: Exchange, new: NewFile, size: int, found: digests.Digests, *, replace: bool
    ) -> Entry:
        if "If-Match" in exchange.headers or "If-Unmodified-Since" in exchange.headers:
            exchange.check_conditions(await exchange.look())  # a long upload: somebody may have been faster
        try:
            return await new.commit(found, size, replace=replace, mtime_ns=_given_mtime(exchange))
        except Conflict as error:
            if replace:
                raise
            if "If-None-Match" in exchange.headers:
                raise PreconditionFailed("it exists by now") from error
            raise Denied("it exists by now, and the token may create but not modify") from error


async def settled(intake: Intake) -> None:
    """The file may become visible or go only when no thread writes to it."""
    intake.drop()
    try:
        await intake.settle()
    except OSError:
        return  # already reported, or the upload failed for another reason


def _refuse_partial(exchange: Exchange) -> None:
    if "Content-Range" in exchange.headers:
        raise BadRequest("partial PUT is not possible here")  # RFC 9110 §14.5
    if exchange.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
        raise BadRequest("a Content-Encoding is not taken: send the file as it is")


def _given_mtime(exchange: Exchange) -> int | None:
    """Nanoseconds of X-OC-Mtime (ownCloud's extension, sent by rclone), within sane bounds."""
    value = exchange.headers.get("X-OC-Mtime", "")
    try:
        seconds = float(value)
    except ValueError:
        return None
    return int(seconds * 1e9) if 0 <= seconds < 2**33 else None
