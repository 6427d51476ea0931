"""Pulling: a partner's file into a temporary one here, resumed when it breaks, checked, then committed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edged.accounts.api import Files
from edged.accounts.faults import of_os
from edged.config.storage import Storage
from edged.errors import Conflict, Denied, EdgeError, NotFound, Upstream, UpstreamTimeout
from edged.logs import get_logger
from services.storage import digests
from services.storage.disk import Disk
from services.storage.exchange import Exchange
from services.storage.intake import Intake, Memory, settled
from services.storage.namespace import Target
from services.storage.newfile import new_file
from services.storage.ranges import Span
from services.storage.thirdparty.dial import Dialer
from services.storage.thirdparty.order import Order, Progress, Verify
from services.storage.thirdparty.remote import parse
from services.storage.thirdparty.wire import Answer

log = get_logger("edged.storage.pull")

PART = 64 << 20  # several streams only pay for files of several times this size
PAUSE_S = (0.2, 1.0, 5.0)  # between attempts


class Broken(Exception):
    """The connection broke after some bytes; what it was about may be asked again."""


@dataclass(slots=True)
class Source:
    """What HEAD told of the partner's file. None: unknown."""

    size: int | None = None
    etag: str | None = None
    ranges: bool = False
    digests: dict[str, bytes] | None = None


class Pull:
    """One pull."""

    def __init__(
        self,
        order: Order,
        exchange: Exchange,
        progress: Progress,
        tools: tuple[Storage, Files, Dialer, Callable[[Target], Disk]],
        memory: Memory,
    ) -> None:
        self._memory = memory
        self._order = order
        self._exchange = exchange
        self._progress = progress
        self._config, self._files, self._dialer, disk_of = tools
        self._disk = disk_of(exchange.target)
        self._remote = parse(order.url)

    async def run(self) -> None:
        """Do it. On any failure nothing is left here."""
        source = await self._look()
        target = self._exchange.target
        parents = target.export.create_parents
        async with new_file(
            self._exchange, self._files, self._disk, target, durable=self._config.durable, parents=parents
        ) as new:
            size, found = await self._bytes(source, new.fd)
            self._verify(source, found)
            try:
                await new.commit(found, size, replace=self._order.replace)
            except Conflict as error:
                raise Conflict("File exists") from error

    async def _look(self) -> Source:
        """HEAD with Want-Digest. Refusals other than 'not there' are left to GET, which tells the truth."""
        if not self._order.ask_first:
            return Source()
        ours = {} if self._order.verify is Verify.NEVER else {"Want-Digest": "adler32"}
        wait_s = self._dialer.config.digest_s if ours else self._dialer.config.stall_s
        async with self._dialer.asked("HEAD", self._remote, self._order.headers, ours, answer_s=wait_s) as (
            answer,
            _,
            _,
        ):
            if answer.status in (404, 410):
                raise NotFound(f"rejected HEAD: {answer.described}")
            if answer.status != 200:
                return Source()
            return source_of(answer)

    async def _bytes(self, source: Source, fd: int) -> tuple[int, dict[str, bytes]]:
        """Into the file: how many, and their digests."""
        parts = self._parts(source)
        try:
            if parts is not None:
                return parts[-1].stop, await self._several(source, fd, parts)
            return await self._single(source, fd)
        except OSError as error:
            raise of_os(error) from error

    def _parts(self, source: Source) -> list[Span] | None:
        """How to share the file between streams; None for one stream, which every digest can follow."""
        streams = min(self._order.streams, self._dialer.config.streams)
        size = source.size or 0
        if streams < 2 or size < 2 * PART or not source.ranges or source.etag is None:
            return None
        if self._config.digests:
            return None
        step = -(-size // streams)
        return [Span(start, min(start + step, size)) for start in range(0, size, step)]

    async def _single(self, source: Source, fd: int) -> tuple[int, dict[str, bytes]]:
        """The whole file over one connection at a time; a break goes on by range, or from the start."""
        intake = self._intake(fd)
        try:
            for attempt in range(self._dialer.config.attempts):
                try:
                    await self._receive(source, intake, Span(0, source.size or 0))
                    return intake.size, await intake.finish()
                except (Upstream, Broken) as error:
                    await self._pause(attempt, error)
                    log.info("pull broken", extra={"remote": self._remote.shown, "at": intake.size})
                if not (source.ranges and source.etag and source.size) and intake.size:
                    self._progress.add(-intake.size)
                    await settled(intake)
                    await self._disk.run((fd,), os.ftruncate, fd, 0)
                    intake = self._intake(fd)
        finally:
            await settled(intake)
        raise Upstream("the copy did not succeed")

    async def _pause(self, attempt: int, error: Upstream | Broken) -> None:
        """Before the next attempt. Raises when there is to be none."""
        if attempt + 1 >= self._dialer.config.attempts or not _worth_retrying(error):
            raise _final(error) from error
        await asyncio.sleep(PAUSE_S[min(attempt, len(PAUSE_S) - 1)])

    async def _several(self, source: Source, fd: int, parts: list[Span]) -> dict[str, bytes]:
        """Each part over its own connection, written at its place; adler32 combines in order."""
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self._part(source, fd, part)) for part in parts]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        total = b"\x00\x00\x00\x01"
        for part, task in zip(parts, running, strict=True):
            total = digests.combine_adler32(total, task.result(), part.stop - part.start)
        return {digests.ADLER32: total}

    async def _part(self, source: Source, fd: int, part: Span) -> bytes:
        intake = self._intake(fd, at=part.start)
        try:
            for attempt in range(self._dialer.config.attempts):
                try:
                    await self._receive(source, intake, part)
                    return (await intake.finish())[digests.ADLER32]
                except (Upstream, Broken) as error:
                    await self._pause(attempt, error)
        finally:
            await settled(intake)
        raise Upstream("the copy did not succeed")

    def _intake(self, fd: int, at: int = 0) -> Intake:
        algorithms = (digests.ADLER32, *self._config.digests)
        return Intake(fd, self._disk, algorithms, self._memory, at=at)

    async def _receive(self, source: Source, intake: Intake, span: Span) -> None:
        """Bytes of the span that are still missing. Raises Broken when the connection ends early."""
        start = span.start + intake.size
        whole = start == 0 and (source.size is None or span.stop == source.size)
        ours: dict[str, str] = {}
        if not whole:
            ours = {"Range": f"bytes={start}-{span.stop - 1}", "If-Range": source.etag or ""}
        async with self._dialer.asked(
            "GET", self._remote, self._order.headers, ours, answer_s=self._dialer.config.stall_s
        ) as (answer, conversation, _):
            expected = self._expected(answer, source, Span(start, span.stop), whole=whole)
            with self._connected(conversation.peer):
                got = 0
                try:
                    while count := await intake.more(conversation):
                        got += count
                        self._progress.add(count)
                except Upstream as error:
                    raise (Broken(str(error)) if got else error) from error
        if expected is not None and got != expected:
            raise Broken(f"{got} of {expected} bytes")

    def _expected(self, answer: Answer, source: Source, missing: Span, *, whole: bool) -> int | None:
        """How many bytes this answer must bring. Raises for one that is not what was asked."""
        if whole:
            if answer.status != 200:
                raise rejected("GET", answer)
            length = answer.length if answer.length is not None else source.size
            if source.size is not None and length != source.size:
                raise Upstream("the source changed between HEAD and GET")
            return length
        wanted = f"bytes {missing.start}-{missing.stop - 1}/{source.size}"
        if answer.status == 200:
            raise Upstream("the source changed, or does not answer ranges", retry=False)
        if answer.status != 206 or answer.headers.get("content-range") != wanted:
            raise rejected("GET", answer)
        return missing.stop - missing.start

    @contextmanager
    def _connected(self, peer: str) -> Iterator[None]:
        self._progress.connections.add(peer)
        try:
            yield
        finally:
            self._progress.connections.discard(peer)

    def _verify(self, source: Source, found: digests.Digests) -> None:
        if self._order.verify is Verify.NEVER:
            return
        known = source.digests or {}
        compared = [algorithm for algorithm in known if algorithm in found]
        for algorithm in compared:
            if known[algorithm] != found[algorithm]:
                raise Upstream(
                    f"checksum mismatch: source has {algorithm} {digests.text(algorithm, known[algorithm])}, "
                    f"received {digests.text(algorithm, found[algorithm])}"
                )
        if not compared and self._order.verify is Verify.ALWAYS:
            raise Upstream("checksum verification required, but the source tells no checksum")


def source_of(answer: Answer) -> Source:
    """What a HEAD answer tells."""
    etag = answer.headers.get("etag")
    known: dict[str, bytes] | None = None
    if "digest" in answer.headers:
        try:
            known = digests.announced({"Digest": answer.headers["digest"]})
        except EdgeError:  # an empty or malformed digest counts as none
            known = None
    return Source(
        answer.length,
        etag if etag and etag.startswith('"') else None,
        "bytes" in answer.headers.get("accept-ranges", "").lower(),
        known,
    )


def rejected(method: str, answer: Answer) -> EdgeError:
    """The partner's refusal, in the words FTS classifies by."""
    text = f"rejected {method}: {answer.described}"
    if answer.status in (401, 403):
        return Denied(text)
    if answer.status in (404, 410):
        return NotFound(text)
    return Upstream(text, retry=answer.status in (408, 429, 500, 502, 503, 504))


def _worth_retrying(error: BaseException) -> bool:
    return isinstance(error, Broken) or (
        isinstance(error, Upstream) and bool(error.values.get("retry", True))
    )


def _final(error: BaseException) -> EdgeError:
    if isinstance(error, EdgeError):
        return error
    return UpstreamTimeout(f"the source broke off: {error}")
