"""Pushing: our file to a partner by PUT, then the partner's checksum compared with ours."""

from __future__ import annotations

from collections.abc import Callable

from edged.accounts.api import Files, OpenFile
from edged.config.storage import Storage
from edged.errors import Conflict, EdgeError, Upstream
from services.storage import digests
from services.storage.checksums import Checksums
from services.storage.disk import BLOCK, Disk, Truncated
from services.storage.exchange import Exchange
from services.storage.namespace import Target
from services.storage.thirdparty.dial import REDIRECTS, Dialer, request_headers
from services.storage.thirdparty.order import Order, Progress, Verify
from services.storage.thirdparty.pull import rejected, source_of
from services.storage.thirdparty.remote import Remote, for_hop, parse, redirected
from services.storage.thirdparty.wire import Answer, Conversation


class Push:
    """One push."""

    def __init__(
        self,
        order: Order,
        exchange: Exchange,
        progress: Progress,
        tools: tuple[Storage, Files, Dialer, Callable[[Target], Disk]],
        checksums: Checksums,
    ) -> None:
        self._order = order
        self._exchange = exchange
        self._progress = progress
        _, self._files, self._dialer, disk_of = tools
        self._disk = disk_of(exchange.target)
        self._checksums = checksums
        self._remote = parse(order.url)
        self._sum = digests.running(digests.ADLER32)

    async def run(self) -> None:
        """Do it. Raises EdgeError; the partner cleans up what did not arrive whole."""
        opened = await self._files.open(self._exchange.grant, self._exchange.target.place)
        try:
            if not self._order.replace:
                await self._refuse_existing()
            with self._exchange.lasting(self._exchange.target):
                answer = await self._send(opened)
                if answer.status not in (200, 201, 202, 204):
                    raise rejected("PUT", answer)
                await self._verify(opened)
        finally:
            self._disk.close(opened.fd)

    async def _refuse_existing(self) -> None:
        """Overwrite: F; asked first, because not every server knows If-None-Match."""
        wait_s = self._dialer.config.stall_s
        async with self._dialer.asked("HEAD", self._remote, self._order.headers, {}, answer_s=wait_s) as (
            answer,
            _,
            _,
        ):
            if answer.status == 200:
                raise Conflict("rejected PUT: 412 the destination exists")

    async def _send(self, opened: OpenFile) -> Answer:
        """PUT, at each redirect again; the body flows only where a server says so or says nothing."""
        here = self._remote
        for _ in range(self._dialer.config.redirects + 1):
            answer = await self._put(here, opened)
            if answer.status not in REDIRECTS or "location" not in answer.headers:
                return answer
            here = redirected(here, answer.headers["location"])
        raise Upstream("too many redirects")

    async def _put(self, here: Remote, opened: OpenFile) -> Answer:
        async with self._dialer.connected(here) as conversation:
            ours = {"Content-Length": str(opened.entry.size), "Content-Type": "application/octet-stream"}
            headers = request_headers(here, for_hop(self._order.headers, self._remote, here), ours)
            self._progress.connections = {conversation.peer}
            try:
                return await conversation.put(
                    here.target,
                    headers,
                    lambda c: self._body(c, opened),
                    answer_s=self._dialer.config.digest_s,
                )
            finally:
                self._progress.connections = set()

    async def _body(self, conversation: Conversation, opened: OpenFile) -> None:
        size, at = opened.entry.size, 0
        self._progress.add(-self._progress.moved)
        self._sum = digests.running(digests.ADLER32)
        while at < size:
            if at + BLOCK >= size and not await self._unchanged(opened):
                raise Truncated("the file changed while it was read")
            data = await self._disk.read(opened.fd, min(BLOCK, size - at), at)
            if not data:
                raise Truncated("the file became shorter while it was read")
            self._sum.update(data)
            at += len(data)
            if not await conversation.write(data):
                return
            self._progress.add(len(data))

    async def _unchanged(self, opened: OpenFile) -> bool:
        return await self._disk.unchanged(opened.fd, opened.entry.size, opened.entry.mtime_ns)

    async def _verify(self, opened: OpenFile) -> None:
        if self._order.verify is Verify.NEVER:
            return
        async with self._dialer.asked(
            "HEAD",
            self._remote,
            self._order.headers,
            {"Want-Digest": "adler32"},
            answer_s=self._dialer.config.digest_s,
        ) as (answer, _, _):
            theirs = source_of(answer) if answer.status == 200 else None
        if theirs is not None and theirs.size not in (None, opened.entry.size):
            raise Upstream("the destination has another size than the source")
        value = (theirs.digests or {}).get(digests.ADLER32) if theirs is not None else None
        if value is None:
            if self._order.verify is Verify.ALWAYS:
                raise Upstream("checksum verification required, but the destination tells no checksum")
            return
        if value != self._sum.digest():
            raise Upstream(
                f"checksum mismatch: source has adler32 {self._sum.digest().hex()}, destination {value.hex()}"
            )
        await self._remember(opened)

    async def _remember(self, opened: OpenFile) -> None:
        """What was computed on the way is kept with our file."""
        try:
            await self._checksums.learned(self._exchange, opened.entry, {digests.ADLER32: self._sum.digest()})
        except EdgeError:
            return
