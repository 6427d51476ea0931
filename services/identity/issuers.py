"""The fetcher: keeps every issuer's keys fresh in the background, and gives them to the signer.

The one part of identity that speaks to the outside. It holds no key of ours.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256

import aiohttp
import msgspec

from edged import metrics
from edged.config import Config
from edged.config.identity import Issuer
from edged.errors import EdgeError, Unavailable, Upstream
from edged.identity import packets, wire
from edged.identity.keycache import KeyCache, KeyDocument
from edged.identity.keys import read_jwks
from edged.identity.packets import Packets
from edged.identity.remembered import Remembered
from edged.identity.words import IssuerUrl
from edged.logs import get_logger
from edged.tls import client_context
from services.identity import issuers_wire
from services.identity.callers import Callers
from services.identity.fetching import IssuerSite

log = get_logger("services.identity.issuers")

FORCED_S = 30.0  # between two looks for an unknown kid: a rotation is seen within a minute
RETRY_S, RETRY_MAX_S = 1.0, 300.0
FILE_S = 2.0  # how often a local key file is read again
RETELL_S = 60.0
STALE_USERINFO_S = 3600.0

FETCHES = metrics.counter("issuer_fetches", "Looks at an issuer's keys.", ("issuer", "outcome"))
FETCHED = metrics.gauge(
    "issuer_keys_fetched_timestamp_seconds", "When an issuer's keys were last got, Unix seconds.", ("issuer",)
)

Tell = Callable[[KeyDocument], None]


class IssuerKeys:
    """One issuer: its newest key document, refreshed by ``follow`` for as long as that runs."""

    def __init__(self, issuer: Issuer, cache: KeyCache, tell: Tell) -> None:
        self.issuer = issuer
        self.document = cache.read(issuer.url)
        self._cache = cache
        self._tell = tell
        self._wanted = asyncio.Event()
        self._looked: asyncio.Event | None = None  # there while a look is awaited
        self._last_asked = float("-inf")

    async def follow(self, site: IssuerSite) -> None:
        """Look now, then every ``refresh_s``, sooner when asked or when it failed."""
        retry = RETRY_S
        while True:
            self._wanted.clear()
            good = await self._look(site)
            looked, self._looked = self._looked, None
            if looked is not None:
                looked.set()
            usual = self.issuer.refresh_s if self.issuer.jwks_file is None else FILE_S
            await self._until_wanted(usual if good else min(retry, usual))
            retry = RETRY_S if good else min(retry * 2, RETRY_MAX_S)

    async def refresh(self) -> None:
        """Ask for a look; returns after it, or at once when the last one asked for is too recent.

        In that case the look is not dropped but put off, so that a rotation is seen within a minute.
        """
        self._wanted.set()
        if self._looked is None and time.monotonic() < self._last_asked + FORCED_S:
            return
        if self._looked is None:
            self._looked = asyncio.Event()
        await self._looked.wait()

    async def _until_wanted(self, wait: float) -> None:
        try:
            async with asyncio.timeout(wait):
                await self._wanted.wait()
        except TimeoutError:
            return
        await asyncio.sleep(max(0.0, self._last_asked + FORCED_S - time.monotonic()))
        self._last_asked = time.monotonic()
        if self._looked is None:
            self._looked = asyncio.Event()

    async def _look(self, site: IssuerSite) -> bool:
        try:
            jwks = await self._from_file() if self.issuer.jwks_file is not None else await site.jwks()
        except EdgeError as error:
            FETCHES.labels(self.issuer.url, "failed").inc()
            log.warning("issuer's keys not got", extra={"issuer": self.issuer.url, "reason": str(error)})
            return False
        FETCHES.labels(self.issuer.url, "ok").inc()
        FETCHED.labels(self.issuer.url).set(time.time())
        before = self.document
        if before is None or before.jwks != jwks or before.fetched_at + RETELL_S < time.time():
            self.document = KeyDocument(IssuerUrl(self.issuer.url), jwks, time.time())
            await asyncio.to_thread(self._cache.write, self.document)
            self._tell(self.document)
        return True

    async def _from_file(self) -> str:
        file = self.issuer.jwks_file
        try:
            content = await asyncio.to_thread(file.read_bytes) if file is not None else b""
        except OSError as error:
            raise Upstream("the key file cannot be read", detail=str(error)) from error
        read_jwks(content)
        return content.decode("utf-8")


class Fetcher:
    """All issuers of the site, behind one local socket."""

    name = "issuers"

    def __init__(self, config: Config, inherited: socket.socket | None = None) -> None:
        self._config = config
        self._path = config.runtime.run / issuers_wire.SOCKET
        self._inherited = inherited
        self._callers = Callers(config)
        self._cache = KeyCache(config.runtime.state / "issuers")
        self._issuers = {i.url: IssuerKeys(i, self._cache, self._tell) for i in config.issuers}
        self._sites: dict[str, IssuerSite] = {}
        self._userinfo: Remembered[bytes] = Remembered(4096)
        self._peers: set[Packets] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        listener = self._inherited or packets.bind(self._path)
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)
            )
            for url, keys in self._issuers.items():
                context = await asyncio.to_thread(client_context, self._config.tls, keys.issuer.ca_file)
                self._sites[url] = IssuerSite(keys.issuer, session, context)
            self._tasks = tasks
            stack.push_async_callback(self._stop)  # what is under way ends before the session closes
            for url, keys in self._issuers.items():
                self._start(keys.follow(self._sites[url]))
            serving = packets.serving(listener, self._asked, on_open=self._greet)
            self._peers = await stack.enter_async_context(serving)
            yield

    def not_ready(self) -> str | None:
        """Not ready while no issuer ever gave a key; one issuer's outage is its own, and a metric's."""
        if not self._issuers or any(keys.document is not None for keys in self._issuers.values()):
            return None
        return f"no keys yet of {', '.join(self._issuers)}"

    def _start(self, work: Coroutine[None, None, None]) -> None:
        if self._tasks is None:
            raise RuntimeError("not running")
        task = self._tasks.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _stop(self) -> None:
        under_way = tuple(self._under_way)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    def _tell(self, document: KeyDocument) -> None:
        packet = issuers_wire.encode(issuers_wire.Keys(document))
        for peer in tuple(self._peers):
            _send(peer, packet)

    def _greet(self, peer: Packets) -> None:
        if not self._callers.is_identity(peer.uid):
            log.warning("issuer socket refused", extra={"uid": peer.uid})
            peer.close()
            return
        for keys in self._issuers.values():
            if keys.document is not None:
                _send(peer, issuers_wire.encode(issuers_wire.Keys(keys.document)))

    def _asked(self, peer: Packets, packet: memoryview) -> None:
        try:
            ask = issuers_wire.decode_from_signer(packet)
        except msgspec.MsgspecError:
            peer.close()
            return
        self._start(self._answer(peer, ask))

    async def _answer(self, peer: Packets, ask: issuers_wire.Ask) -> None:
        what: issuers_wire.Refreshed | issuers_wire.Claims | wire.Failure
        try:
            if isinstance(ask.what, issuers_wire.Refresh):
                await self._known(ask.what.issuer).refresh()
                what = issuers_wire.Refreshed()
            else:
                what = issuers_wire.Claims(await self._claims(ask.what.issuer, ask.what.token))
        except EdgeError as error:
            what = wire.failure(error)
        _send(peer, issuers_wire.encode(issuers_wire.Answer(ask.number, what)))

    async def _claims(self, url: IssuerUrl, token: str) -> bytes:
        """The issuer's answer. During its outage userinfo's last one stands in; introspection's never."""
        issuer, site = self._known(url).issuer, self._sites[url]
        if issuer.claims_from == "introspection":
            return msgspec.json.encode(await site.introspection(token))
        key = sha256(token.encode()).digest()
        try:
            answer = msgspec.json.encode(await site.userinfo(token))
        except Upstream:
            held = self._userinfo.get(key, time.time())
            if held is None:
                raise
            return held
        self._userinfo.put(key, answer, time.time() + STALE_USERINFO_S)
        return answer

    def _known(self, url: IssuerUrl) -> IssuerKeys:
        keys = self._issuers.get(url)
        if keys is None:
            raise Unavailable("this issuer is not configured here")
        return keys


def _send(peer: Packets, packet: bytes) -> None:
    try:
        peer.send(packet)
    except Unavailable as error:
        log.debug("signer gone", extra={"reason": str(error)})
