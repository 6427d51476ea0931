"""The signer's side of the fetcher: every issuer's keys in memory, and a way to ask for more."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from edged import metrics
from edged.config import Config
from edged.errors import EdgeError, Unavailable
from edged.identity import packets, wire
from edged.identity.keycache import KeyCache, KeyDocument
from edged.identity.keys import KeySet, read_jwks
from edged.identity.packets import Packets
from edged.identity.words import IssuerUrl
from edged.logs import get_logger
from services.identity import issuers_wire

log = get_logger("services.identity.keyring")

ANSWER_S = 12.0
RECONNECT_S = 0.2
NO_KEYS = KeySet()

KEYS = metrics.gauge("identity_issuer_keys", "Keys known of an issuer.", ("issuer",))


class Keyring:
    """Keys by issuer. They outlive the fetcher and the issuer by ``keep_s``. ``clock``: Unix seconds."""

    name = "identity-keyring"

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._keep_s = {issuer.url: issuer.keep_s for issuer in config.issuers}
        self._path = config.runtime.run / issuers_wire.SOCKET
        self._clock = clock
        self._held: dict[str, tuple[float, KeySet]] = {}
        self._connection: Packets | None = None
        self._closed = asyncio.Event()
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[issuers_wire.Answer]] = {}
        cache = KeyCache(config.runtime.state / "issuers")
        for url in self._keep_s:
            if (document := cache.read(url)) is not None:
                self._take(document)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        following = tasks.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            if self._connection is not None:
                self._connection.close()

    def not_ready(self) -> str | None:
        """Not ready when no key of any issuer is known; one issuer's outage is its own."""
        if not self._keep_s or any(self.keys(IssuerUrl(url)) for url in self._keep_s):
            return None
        return "no key of any issuer is known"

    def keys(self, issuer: IssuerUrl) -> KeySet:
        """The keys of ``issuer``; empty when none came within ``keep_s``."""
        held = self._held.get(issuer)
        return held[1] if held is not None and held[0] > self._clock() else NO_KEYS

    async def refresh(self, issuer: IssuerUrl) -> None:
        """Have the fetcher look for new keys; they are here when this returns. Raises Unavailable."""
        await self._ask(issuers_wire.Refresh(issuer))

    async def claims(self, issuer: IssuerUrl, token: str) -> Mapping[str, Any]:
        """The issuer's userinfo or introspection. Raises Unauthenticated, Upstream or Unavailable."""
        answer = await self._ask(issuers_wire.ClaimsOf(issuer, token))
        if not isinstance(answer, issuers_wire.Claims):
            raise Unavailable("the issuer fetcher answers what was not asked")
        return msgspec.json.decode(answer.json, type=dict[str, Any])

    def _take(self, document: KeyDocument) -> None:
        keep_s = self._keep_s.get(document.issuer)
        if keep_s is None:
            return
        try:
            keys = read_jwks(document.jwks.encode())
        except EdgeError as error:
            log.warning("keys refused", extra={"issuer": document.issuer, "reason": str(error)})
            return
        self._held[document.issuer] = (document.fetched_at + keep_s, keys)
        KEYS.labels(document.issuer).set(len(keys))

    async def _follow(self) -> None:
        """Stay connected to the fetcher."""
        while True:
            self._closed.clear()
            try:
                self._connection = packets.connect(self._path, self._told, self._lost)
                await self._closed.wait()
            except Unavailable as error:
                log.debug("fetcher", extra={"reason": str(error)})
            await asyncio.sleep(RECONNECT_S)

    def _told(self, connection: Packets, packet: memoryview) -> None:
        try:
            message = issuers_wire.decode_from_fetcher(packet)
        except msgspec.MsgspecError:
            connection.close()
            return
        if isinstance(message, issuers_wire.Keys):
            self._take(message.document)
            return
        waiting = self._pending.get(message.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _lost(self, connection: Packets) -> None:
        self._closed.set()
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("the issuer fetcher went away"))

    async def _ask(
        self, what: issuers_wire.Refresh | issuers_wire.ClaimsOf
    ) -> issuers_wire.Refreshed | issuers_wire.Claims:
        if self._connection is None or self._connection.closed:
            raise Unavailable("the issuer fetcher does not answer")
        number = next(self._numbers)
        answered: asyncio.Future[issuers_wire.Answer] = asyncio.get_running_loop().create_future()
        self._pending[number] = answered
        try:
            self._connection.send(issuers_wire.encode(issuers_wire.Ask(number, what)))
            async with asyncio.timeout(ANSWER_S):
                answer = (await answered).what
        except TimeoutError:
            raise Unavailable("the issuer fetcher does not answer in time") from None
        finally:
            del self._pending[number]
        if isinstance(answer, wire.Failure):
            raise wire.raised(answer)
        return answer
