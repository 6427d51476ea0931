"""Plain HTTP caching for configured destinations, by RFC 9111; Frontier's conditional requests included.

A stored answer is a small record; its body is an object named by its SHA-256 in the common store, so
it is verified, evicted and served like any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial

import msgspec

from edged.config.cache import Cache
from edged.errors import Busy, EdgeError, Upstream
from edged.logs import get_logger
from services.cache import answers, freshness
from services.cache.answers import Answer
from services.cache.fetcher import pour
from services.cache.fill import Fill
from services.cache.freshness import Stored
from services.cache.names import ObjectName
from services.cache.objects import Objects
from services.cache.records import Records
from services.cache.repositories import Destination, WebRoute
from services.cache.requests import Request
from services.cache.residents import Resident, Residents
from services.cache.store import Store
from services.cache.traffic import Outcome
from services.cache.upstream.exchange import Reply
from services.cache.upstream.origin import Origin
from services.cache.upstream.race import Race

log = get_logger("edged.cache.web")

_NOT_FORWARDED = frozenset(
    {"host", "connection", "proxy-connection", "keep-alive", "te", "trailer", "upgrade", "content-length"}
    | {"proxy-authorization", "if-none-match", "if-modified-since", "if-range", "range", "via"}
    | {"cache-control", "pragma"}
)


class Exchange:
    """One fetch of a web answer: its head, once known, and its body as a fill."""

    def __init__(self, fill: Fill, loop: asyncio.AbstractEventLoop) -> None:
        self.fill = fill
        self.head: asyncio.Future[Stored] = loop.create_future()
        self.head.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.shared = False


class Web:
    """The plain HTTP side of the cache."""

    def __init__(
        self,
        config: Cache,
        objects: Objects,
        residents: Residents,
        store: Store,
        disk: Executor,
        *,
        via: bytes,
    ) -> None:
        self._config = config
        self._objects = objects
        self._residents = residents
        self._store = store
        self._disk = disk
        self._via = via
        self._records = Records(store, disk)
        self._running: dict[str, Exchange] = {}
        self._fetches = 0
        self._tasks: asyncio.TaskGroup | None = None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Fetches run in ``tasks``."""
        self._tasks = tasks

    def at_hand(self, route: WebRoute) -> Resident | None:
        """A fresh answer without variants that is hot."""
        return self._residents.get(_key(route.key))

    async def answer(self, route: WebRoute, request: Request) -> Answer:
        """The answer to a request. Raises EdgeError."""
        asked = _text(request)
        stored = await self._records.find(route.key, asked)
        section = route.destination.section
        now = time.time()
        if stored is not None and now < freshness.fresh_until(stored, section.negative_s):
            anew = freshness.asks_anew(asked, now - freshness.birth(stored))
            found = None if anew else await self._from_store(route, request, stored, Outcome.DISK)
            if found is not None:
                return found
        return await self._fetched(route, request, asked, stored)

    # from the store

    async def _from_store(
        self, route: WebRoute, request: Request, stored: Stored, outcome: Outcome
    ) -> Answer | None:
        """The stored answer, or None when its body was evicted."""
        traffic, born = route.destination.traffic, freshness.birth(stored)
        fields = _lines(stored)
        if freshness.not_modified(_text(request), stored.fields()) and stored.status == 200:
            return Answer(fields, outcome, traffic, status=304, born=born)
        resident = await self._objects.load(ObjectName(stored.body))
        if resident is None:
            return None
        self._hold(route, stored, resident)
        return Answer(fields, outcome, traffic, stored.status, resident.body, resident.file, born=born)

    def _hold(self, route: WebRoute, stored: Stored, body: Resident) -> None:
        """Make a fresh answer without variants hot."""
        until = freshness.fresh_until(stored, route.destination.section.negative_s)
        if stored.vary or stored.status != 200 or until <= time.time():
            return
        head = answers.resident_head(_lines(stored), body.size)
        born = freshness.birth(stored)
        self._residents.add(
            Resident(_key(route.key), head, body.size, born, until, body=body.body, file=body.file)
        )

    # from upstream

    async def _fetched(
        self, route: WebRoute, request: Request, asked: Mapping[str, str], stored: Stored | None
    ) -> Answer:
        traffic = route.destination.traffic
        name = freshness.variant(route.key, self._records.vary(route.key), asked)
        personal = "authorization" in asked or "cookie" in asked
        running = None if personal else self._running.get(name)
        joined = running is not None
        if running is None:
            running = self._begin(name, route, asked, stored, personal)
        try:
            head = await asyncio.shield(running.head)
        except EdgeError:
            stale = await self._stale(route, request, stored)
            if stale is None:
                raise
            return stale
        if joined and not (running.shared and self._same_variant(head, asked, name, route)):
            head_of_own = self._begin("", route, asked, None, personal)
            running, head = head_of_own, await asyncio.shield(head_of_own.head)
        if running.fill.name is not None and running.fill.done and running.fill.received == 0 and head.body:
            found = await self._from_store(route, request, head, Outcome.REVALIDATED)
            if found is not None:
                return found
            return await self._fetched(route, request, asked, None)
        outcome = Outcome.SHARED if joined else Outcome.MISS if running.shared else Outcome.PASSED
        if head.status == 200 and freshness.not_modified(asked, head.fields()):
            return Answer(_lines(head), outcome, traffic, status=304, born=freshness.birth(head))
        born = freshness.birth(head) if running.shared else None
        return Answer(_lines(head), outcome, traffic, head.status, fill=running.fill, born=born)

    def _same_variant(self, head: Stored, asked: Mapping[str, str], name: str, route: WebRoute) -> bool:
        return not head.vary or freshness.variant(route.key, self._records.vary(route.key), asked) == name

    async def _stale(self, route: WebRoute, request: Request, stored: Stored | None) -> Answer | None:
        if stored is None:
            return None
        section = route.destination.section
        limit = freshness.stale_allowed_s(stored, section.stale_if_error_s)
        if time.time() > freshness.fresh_until(stored, section.negative_s) + limit:
            return None
        return await self._from_store(route, request, stored, Outcome.STALE)

    def _begin(
        self, name: str, route: WebRoute, asked: Mapping[str, str], stored: Stored | None, personal: bool
    ) -> Exchange:
        """A fetch. Raises Busy."""
        assert self._tasks is not None
        if self._fetches >= self._config.fills:  # a fetch outlives a client that leaves
            raise Busy("too many answers are being fetched")
        self._fetches += 1
        limit = self._config.max_object
        fill = Fill(self._store, self._disk, name=None, small=self._config.memory_object, limit=limit)
        exchange = Exchange(fill, asyncio.get_running_loop())
        if name and not personal:
            self._running[name] = exchange
        self._tasks.create_task(self._run(name, exchange, route, asked, None if personal else stored))
        return exchange

    async def _run(
        self, name: str, exchange: Exchange, route: WebRoute, asked: Mapping[str, str], stored: Stored | None
    ) -> None:
        """The life of a fetch; its outcome is in the exchange, never raised."""
        try:
            await self._exchange(exchange, route, asked, stored)
        except EdgeError as error:
            self._failed(exchange, error)
        except Exception as error:
            log.exception("fetch failed", extra={"destination": route.destination.section.name})
            self._failed(exchange, Upstream("the fetch failed", detail=repr(error)))
        finally:
            self._fetches -= 1
            if self._running.get(name) is exchange:
                del self._running[name]
            self._failed(exchange, Upstream("the cache is stopping"))

    def _failed(self, exchange: Exchange, error: EdgeError) -> None:
        if not exchange.head.done():
            exchange.head.set_exception(error)
        if not exchange.fill.done and exchange.fill.failure is None:
            exchange.fill.fail(error)

    async def _exchange(
        self, exchange: Exchange, route: WebRoute, asked: Mapping[str, str], stored: Stored | None
    ) -> None:
        limits, fill = self._config.upstream, exchange.fill
        requested = time.time()
        deadline = asyncio.get_running_loop().time() + limits.answer_s
        race = Race(route.destination.origins, limits, _judge)
        origin, reply = await race.first(route.path, self._headers(asked, stored), deadline)
        if reply.status == 304 and stored is not None:
            reply.close()
            origin.worked()
            head = freshness.refreshed(stored, reply.headers, requested, time.time())
            exchange.shared = True
            fill.name, fill.done = ObjectName(stored.body), True
            await self._records.keep(head, asked)
            exchange.head.set_result(head)
            return
        head = _stored(route, reply, requested)
        exchange.shared = self._keeps(route.destination, reply, head, asked)
        if exchange.shared and not reply.until_close:
            fill.settle = partial(self._keep, fill, head, asked)
        exchange.head.set_result(head)
        await self._body(origin, reply, fill)
        origin.worked()

    async def _body(self, origin: Origin, reply: Reply, fill: Fill) -> None:
        try:
            await pour(origin, reply, fill, self._config.upstream)
        except Upstream as error:
            origin.failed(str(error))
            raise

    async def _keep(self, fill: Fill, head: Stored, asked: Mapping[str, str]) -> None:
        """Store a whole answer, before its readers hear that it is whole: who asks then finds it."""
        assert fill.name is not None
        if fill.body is not None:
            self._objects.keep(fill.name, fill.body)
        whole = msgspec.structs.replace(head, body=fill.name.key, size=fill.received)
        await self._records.keep(whole, asked)

    def _keeps(self, destination: Destination, reply: Reply, head: Stored, asked: Mapping[str, str]) -> bool:
        if reply.length is not None and reply.length > destination.section.max_object:
            return False
        return freshness.storable(reply.status, head.fields(), asked)

    def _headers(self, asked: Mapping[str, str], stored: Stored | None) -> bytes:
        named = {item.strip().lower() for item in asked.get("connection", "").split(",")}
        lines = [(name, value) for name, value in asked.items() if name not in _NOT_FORWARDED | named]
        via = asked.get("via", "")
        lines.append(("via", f"{via}, {self._via.decode()}" if via else self._via.decode()))
        if stored is not None:
            lines += freshness.conditions(stored)
        return "".join(f"{name}: {value}\r\n" for name, value in lines).encode("latin-1")


def _judge(reply: Reply) -> EdgeError | None:
    """A destination's 5xx is a failure; everything else is its answer."""
    if reply.status >= 500 and reply.status not in (501, 505):
        return Upstream("an upstream failed", detail=f"status {reply.status}")
    return None


def _stored(route: WebRoute, reply: Reply, requested: float) -> Stored:
    headers = freshness.end_to_end(reply.headers)
    if (age := reply.fields.get("age", "")).isascii() and age.isdigit():
        headers.append(("X-Edged-Age", age))
    fields = freshness.joined(headers)
    return Stored(route.key, reply.status, headers, requested, time.time(), "", 0, freshness.vary(fields))


def _lines(stored: Stored) -> bytes:
    shown = (f"{name}: {value}\r\n" for name, value in stored.headers if name.lower() != "x-edged-age")
    return answers.COMMON + "".join(shown).encode("latin-1")


def _text(request: Request) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in request.fields.values.items()}


def _key(key: bytes) -> str:
    return "web " + key.decode("latin-1")
