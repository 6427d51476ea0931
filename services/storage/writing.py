"""PUT: into an invisible temporary file, digests while bytes pass, and it appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from edged.accounts.api import Entry, Files
from edged.accounts.faults import of_os
from edged.config.storage import Storage
from edged.errors import BadRequest, Conflict, Denied, NotFound, PreconditionFailed, TooLarge
from edged.http.request import Request
from services.storage import digests
from services.storage.access import CREATE, MODIFY
from services.storage.conditions import etag
from services.storage.disk import Disk
from services.storage.exchange import Exchange
from services.storage.faults import MethodRefused
from services.storage.guard import Guard
from services.storage.intake import Intake, Memory, settled
from services.storage.namespace import Target
from services.storage.newfile import NewFile, new_file
from services.storage.properties import is_directory
from services.storage.sending import Connection
from services.storage.transfers import Transfer, Transfers


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
        expected = exchange.request.content_length
        intake = Intake(new.fd, self._disk_of(exchange.target), algorithms, self._memory, expected=expected)
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

    async def _take_body(self, request: Request, intake: Intake, transfer: Transfer) -> None:
        body, limit = request.body, self._config.upload
        while count := await intake.more(body):
            transfer.moved += count
            if transfer.moved > limit:
                raise TooLarge(f"file over {limit} bytes")
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
