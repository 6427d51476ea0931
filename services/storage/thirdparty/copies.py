"""COPY with Source or a foreign Destination: checked, queued, carried out, told in performance markers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from edged import metrics
from edged.accounts.api import Files
from edged.config.storage import Storage, ThirdParty
from edged.errors import BadRequest, Denied, EdgeError, NotFound, PreconditionFailed
from edged.http.request import parsed
from edged.identity.words import Principal
from edged.logs import get_logger
from services.storage.access import CREATE, MODIFY, READ
from services.storage.checksums import Checksums
from services.storage.disk import Disk
from services.storage.exchange import Exchange
from services.storage.guard import Guard
from services.storage.intake import Memory
from services.storage.namespace import OwnNames, Target
from services.storage.properties import is_directory
from services.storage.thirdparty.dial import Dialer
from services.storage.thirdparty.order import Copying, Direction, Executor, Order, Progress, Verify
from services.storage.thirdparty.pull import Pull
from services.storage.thirdparty.push import Push
from services.storage.thirdparty.remote import parse, transfer_headers
from services.storage.thirdparty.turns import Turns
from services.storage.transfers import Transfers

log = get_logger("edged.storage.copies")

ENDED = metrics.counter("storage_copies", "Third-party copies ended.", ("direction", "vo", "outcome"))
VERIFY = {"false": Verify.NEVER, "true": Verify.ALWAYS}


class InProcess:
    """The executor that copies in this process."""

    def __init__(
        self,
        config: Storage,
        files: Files,
        dialer: Dialer,
        disk_of: Callable[[Target], Disk],
        checksums: Checksums,
        *,
        memory: Memory,
    ) -> None:
        self._tools = (config, files, dialer, disk_of)
        self._memory = memory
        self._checksums = checksums

    async def run(self, order: Order, exchange: Exchange, progress: Progress) -> None:
        """See ``order.Executor``."""
        if order.direction is Direction.PULL:
            await Pull(order, exchange, progress, self._tools, self._memory).run()
        else:
            await Push(order, exchange, progress, self._tools, self._checksums).run()


class Copies:
    """The third-party half of COPY."""

    def __init__(
        self,
        config: ThirdParty,
        dialer: Dialer,
        executor: Executor,
        transfers: Transfers,
        guard: Guard,
        *,
        own_names: OwnNames,
        turns: Turns,
    ) -> None:
        self._config = config
        self._dialer = dialer
        self._executor = executor
        self._transfers = transfers
        self._guard = guard
        self._own_names = own_names
        self._turns = turns

    def concerns(self, exchange: Exchange) -> bool:
        """Whether this COPY is between two servers."""
        headers = exchange.headers
        if "Source" in headers:
            return True
        return not self._own_names.is_own(headers.get("Destination", "/").strip() or "/")

    async def copy(self, exchange: Exchange) -> web.StreamResponse:
        """202 and markers. Only what the caller did wrong is told by a status; the rest by ``failure:``.

        Clients take every status from 405 up, and 501, for "third-party copy is not supported here".
        """
        order = await self._order(exchange)
        response = web.StreamResponse(status=202, headers={"Content-Type": "text/plain"})
        await response.prepare(parsed(exchange.request))
        copying = self._start(order, exchange)
        try:
            while not copying.task.done():
                await response.write(marker(copying.progress, time.time()))
                await asyncio.wait((copying.task,), timeout=self._config.marker_s)
        finally:
            if not copying.task.done():  # the client left, or we stop
                copying.cancel()
                await asyncio.wait((copying.task,))
        await response.write_eof(f"{last_line(copying.task)}\n".encode("utf-8", "replace"))
        return response

    # --- before the 202

    async def _order(self, exchange: Exchange) -> Order:
        headers = exchange.headers
        direction = Direction.PULL if "Source" in headers else Direction.PUSH
        if direction is Direction.PULL and "Destination" in headers:
            raise BadRequest("Source and Destination in one request")
        url = headers["Source" if direction is Direction.PULL else "Destination"]
        if headers.get("Credential", "none").lower() not in ("none", ""):
            raise BadRequest("only Credential: none; tokens travel in TransferHeaderAuthorization")
        remote = parse(url)
        try:
            self._dialer.partners.check(remote)
        except Denied as error:
            exchange.decided_refused(f"third-party {direction}", error.message)
            raise
        overwrite = headers.get("Overwrite", "T").strip().upper() != "F"
        admit = self._admit_pull if direction is Direction.PULL else self._admit_push
        exists = await admit(exchange, overwrite=overwrite)
        return Order(
            direction=direction,
            url=url,
            headers=transfer_headers(exchange.request.headers.items()),
            path=exchange.target.key,
            replace=overwrite and (direction is Direction.PUSH or exchange.allows(MODIFY)),
            exists=exists,
            verify=VERIFY.get(headers.get("RequireChecksumVerification", "").lower(), Verify.IF_KNOWN),
            streams=_number(headers.get("X-Number-Of-Streams", "1")),
            ask_first="nohead" not in headers.get("Copy-Flags", "").lower(),
            client=headers.get("ClientInfo", "")[:1000],
        )

    async def _admit_pull(self, exchange: Exchange, *, overwrite: bool) -> bool:
        exchange.require(CREATE)
        if exchange.target.collection or not exchange.target.path:
            raise BadRequest("a collection cannot be the target of a copy")
        there = await exchange.look()
        if there is not None:
            if is_directory(there):
                raise BadRequest("a collection is in the way")
            if not overwrite:
                raise PreconditionFailed("the destination exists")
            if not exchange.allows(MODIFY):
                raise Denied("it exists, and the token may create but not modify")
        await self._guard.change(exchange, exchange.target, member=there is None)
        return there is not None

    async def _admit_push(self, exchange: Exchange, *, overwrite: bool) -> bool:
        _ = overwrite  # the partner's file: judged by the partner
        exchange.require(READ)
        entry = await exchange.look()
        if entry is None:
            raise NotFound("no such file or directory")
        if is_directory(entry):
            raise BadRequest("a collection cannot be pushed")
        return True

    # --- after it

    def _start(self, order: Order, exchange: Exchange) -> Copying:
        progress = Progress()
        task = asyncio.get_running_loop().create_task(self._run(order, exchange, progress))
        return Copying(progress, task)

    async def _run(self, order: Order, exchange: Exchange, progress: Progress) -> None:
        """Wait for the VO's turn, copy, count."""
        started = time.monotonic()
        verdict = exchange.verdict
        outcome, reason = "cancelled", ""
        own = asyncio.current_task()
        assert own is not None
        try:
            kind = f"tpc-{order.direction}"
            counted = self._transfers.running(
                kind, verdict.principal, verdict.account, own.cancel, watch=False
            )
            with counted as progress.transfer:
                async with self._turns.turn(verdict.vo):
                    await self._executor.run(order, exchange, progress)
            outcome = "done"
        except EdgeError as error:
            outcome, reason = error.code, str(error)
            raise
        except Exception as error:
            outcome, reason = "failed", repr(error)
            raise
        finally:
            ENDED.labels(order.direction, verdict.vo, outcome).inc()
            seconds = time.monotonic() - started
            _log_end(order, verdict.principal, progress, outcome=outcome, reason=reason, seconds=seconds)


def _log_end(
    order: Order, principal: Principal, progress: Progress, *, outcome: str, reason: str, seconds: float
) -> None:
    log.info(
        "copy ended",
        extra={
            "direction": order.direction.value,
            "remote": parse(order.url).shown,
            "path": order.path,
            "outcome": outcome,
            "reason": reason,
            "bytes": progress.moved,
            "seconds": round(seconds, 3),
            "client": order.client,
            **principal.for_log(),
        },
    )


def marker(progress: Progress, now: float) -> bytes:
    """A performance marker as GridFTP's, which FTS reads."""
    connections = (
        f"RemoteConnections: {','.join(sorted(progress.connections))}\n" if progress.connections else ""
    )
    return (
        f"Perf Marker\nTimestamp: {int(now)}\nStripe Index: 0\nStripe Bytes Transferred: {progress.moved}\n"
        f"Total Stripe Count: 1\n{connections}End\n"
    ).encode()


def last_line(task: asyncio.Task[None]) -> str:
    """What the client must know of the end, on one line."""
    if task.cancelled():
        return "failure: 403 cancelled by the site"
    error = task.exception()
    if error is None:
        return "success: Created"
    if isinstance(error, EdgeError):
        return "failure: " + " ".join(error.message.split())
    log.error("copy failed unexpectedly", exc_info=error)
    return "failure: internal error"


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 1
