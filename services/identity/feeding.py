"""The ban feed's sending side: the whole state to who subscribes, then every change, and a heartbeat."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

from edged import metrics
from edged.identity import feed, packets
from edged.identity.feed import AnyMessage
from edged.logs import get_logger
from services.identity.callers import Callers

log = get_logger("services.identity.feed")

UNREAD_BYTES = 4 << 20  # more than this unread, and the subscriber is cut off: it starts anew
SUBSCRIBERS_OF_A_USER = 128  # some for each process of a front; who takes more shuts nobody out
_FRAME_MESSAGES = 256

SUBSCRIBERS = metrics.gauge("identity_feed_subscribers", "Fronts and accountd that hear the ban feed.")


class FeedServer:
    """Tells all subscribers. ``state`` gives the bans and ended jobs of this moment."""

    name = "identity-feed"

    def __init__(
        self,
        path: Path,
        callers: Callers,
        state: Callable[[], Iterable[AnyMessage]],
        inherited: socket.socket | None = None,
    ) -> None:
        self._path = path
        self._callers = callers
        self._state = state
        self._inherited = inherited
        self._subscribers: set[asyncio.StreamWriter] = set()
        self._of_users: Counter[int] = Counter()

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        sock = self._inherited or packets.bind(self._path, socket.SOCK_STREAM)
        server = await asyncio.start_unix_server(self._subscribe, sock=sock)
        beating = tasks.create_task(self._beat())
        try:
            yield
        finally:
            beating.cancel()
            server.close()
            for writer in tuple(self._subscribers):
                writer.transport.abort()

    def tell(self, *messages: AnyMessage) -> None:
        """Send to all, at once; who does not read is cut off."""
        data = feed.frame(messages)
        for writer in tuple(self._subscribers):
            if writer.transport.get_write_buffer_size() > UNREAD_BYTES:
                log.warning("subscriber of the ban feed cut off: it does not read")
                writer.transport.abort()
                self._subscribers.discard(writer)
            else:
                writer.write(data)

    async def _subscribe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One subscriber until it leaves. It may send nothing."""
        uid = packets.peer_uid(writer.get_extra_info("socket"))
        if not self._callers.may_listen(uid) or self._of_users[uid] >= SUBSCRIBERS_OF_A_USER:
            log.warning("ban feed refused", extra={"uid": uid})
            writer.close()
            return
        writer.write(feed.frame([feed.Begin(time.monotonic())]))
        state = iter(self._state())
        while part := list(islice(state, _FRAME_MESSAGES)):
            writer.write(feed.frame(part))
        writer.write(feed.frame([feed.Loaded(time.monotonic())]))
        # added without an await since the state was read: no change falls between
        self._subscribers.add(writer)
        self._of_users[uid] += 1
        SUBSCRIBERS.set(len(self._subscribers))
        try:
            await reader.read(1)
        except OSError as error:
            log.debug("ban feed", extra={"reason": str(error)})
        finally:
            self._subscribers.discard(writer)
            self._of_users[uid] -= 1
            SUBSCRIBERS.set(len(self._subscribers))
            writer.close()

    async def _beat(self) -> None:
        while True:
            self.tell(feed.Heartbeat(time.monotonic()))
            await asyncio.sleep(feed.HEARTBEAT_S)
