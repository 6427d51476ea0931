"""Answering requests for CVMFS repositories: objects by name, documents by age, the order of strata."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from edged.config.cache import Cache
from edged.errors import EdgeError, NotFound
from edged.logs import get_logger
from services.cache import answers
from services.cache.answers import Answer
from services.cache.documents import MANIFEST, WHITELIST, Document, Rollback, as_upstream_fault
from services.cache.names import DocumentPath, GeoPath, ObjectName, ObjectPath
from services.cache.objects import Objects
from services.cache.once import Once
from services.cache.repositories import CvmfsRoute, Repository
from services.cache.requests import Request
from services.cache.residents import Resident, Residents
from services.cache.signatures import BadSignature
from services.cache.traffic import Outcome
from services.cache.upstream.origin import Origin
from services.cache.upstream.race import Race

log = get_logger("edged.cache.cvmfs")

_MAX_DOCUMENT = 16 << 20
_MAX_GEO = 4096  # answers remembered
_RELOAD_S = 1.0  # a document younger than this is not fetched again, whatever the client says
_MEDIA = {".json": b"application/json"}


class Cvmfs:
    """The CVMFS side of the cache."""

    def __init__(self, config: Cache, objects: Objects, residents: Residents) -> None:
        self._config = config
        self._objects = objects
        self._residents = residents
        self._once: Once[Document] = Once()
        self._geo: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Fetches run in ``tasks``."""
        self._once.start(tasks)

    def at_hand(self, route: CvmfsRoute) -> Resident | None:
        """What can be answered without waiting."""
        match route.path:
            case ObjectPath(name=name):
                return self._objects.at_hand(name)
            case DocumentPath(file=file):
                return self._residents.get(_key(route.repository, file))
            case _:
                return None

    async def answer(self, route: CvmfsRoute, request: Request) -> Answer:
        """The answer to a request. Raises EdgeError."""
        match route.path:
            case ObjectPath():
                return await self._object(route.repository, route.path, request)
            case DocumentPath():
                return await self._document(route.repository, route.path, request)
            case GeoPath():
                return await self._order(route.repository, route.path)

    # objects

    async def _object(self, repository: Repository, path: ObjectPath, request: Request) -> Answer:
        traffic, name = repository.traffic, path.name
        under_way = self._objects.fill_of(name)
        if under_way is None:
            if request.fields.no_cache:
                await self._objects.drop(name)
            elif (resident := await self._objects.load(name)) is not None:
                return Answer.of(resident, answers.OBJECT, Outcome.DISK, traffic)
        fill = self._objects.fetch(name, repository.origins, path.path)
        await asyncio.shield(fill.loaded)
        if fill.failure is not None:
            raise fill.failure
        outcome = Outcome.MISS if under_way is None else Outcome.SHARED
        return Answer(
            answers.OBJECT, outcome, traffic, body=fill.body, fill=None if fill.body is not None else fill
        )

    async def object_bytes(self, repository: Repository, name: ObjectName, suffix: str) -> bytes:
        """A small object of a repository, verified. Raises EdgeError."""
        path = f"/cvmfs/{repository.name}/{name.path(suffix)}".encode()
        return await self._objects.whole(name, repository.origins, path)

    # documents

    async def _document(self, repository: Repository, path: DocumentPath, request: Request) -> Answer:
        known = repository.documents.held(path.file)
        age = time.time() - known.fetched if known else float("inf")
        fresh_s = min(self._config.fresh_s, _RELOAD_S) if request.fields.no_cache else self._config.fresh_s
        if known is not None and age < fresh_s:
            return self._said(repository, path, known, Outcome.MEMORY)
        try:
            return self._said(repository, path, await self._renewed(repository, path), Outcome.MISS)
        except NotFound:
            raise
        except EdgeError as error:
            if known is None or known.data is None or age > self._config.stale_s:
                raise
            log.warning(
                "stale document served",
                extra={
                    "repository": repository.name,
                    "file": path.file,
                    "age_s": int(age),
                    "reason": str(error),
                },
            )
            return self._said(repository, path, known, Outcome.STALE)

    async def _renewed(self, repository: Repository, path: DocumentPath) -> Document:
        return await self._once.run(
            _key(repository, path.file), lambda: self._fetch_document(repository, path)
        )

    async def _fetch_document(self, repository: Repository, path: DocumentPath) -> Document:
        limits = self._config.upstream
        deadline = asyncio.get_running_loop().time() + limits.answer_s
        race = Race(repository.origins, limits)
        while True:
            try:
                origin, reply = await race.first(path.path, b"", deadline)
            except NotFound:
                self._residents.drop(_key(repository, path.file))
                return repository.documents.keep(path.file, None)
            try:
                async with asyncio.timeout_at(deadline):
                    data = await reply.read(_MAX_DOCUMENT)
                    await self._checked(repository, path, origin, data)
            except TimeoutError:
                origin.failed("document stalls")
                reply.close()
            except EdgeError as error:
                origin.failed(str(error))
                race.errors.append(error)
            else:
                origin.worked()
                return repository.documents.keep(path.file, data)

    async def _checked(self, repository: Repository, path: DocumentPath, origin: Origin, data: bytes) -> None:
        """Raises EdgeError when the document must not be served; counted and logged here."""
        trust = repository.documents.trust

        async def whitelist(again: bool) -> bytes:
            return await self._whitelist(repository, again)

        async def fetch(name: ObjectName, suffix: str) -> bytes:
            return await self.object_bytes(repository, name, suffix)

        try:
            await repository.documents.check(path.file, data, whitelist, fetch)
        except BadSignature as error:
            origin.figures.damaged += 1
            trust.rollbacks += isinstance(error, Rollback)
            trust.bad += not isinstance(error, Rollback)
            event = "rollback refused" if isinstance(error, Rollback) else "untrusted document refused"
            log.error(  # noqa: TRY400 - the trace says nothing, the reason does
                event,
                extra={
                    "repository": repository.name,
                    "file": path.file,
                    "upstream": origin.base,
                    "reason": str(error),
                },
            )
            raise as_upstream_fault(error) from error

    async def _whitelist(self, repository: Repository, again: bool) -> bytes:
        known = repository.documents.held(WHITELIST)
        oldest = time.time() - (_RELOAD_S if again else self._config.fresh_s)
        if known is not None and known.data is not None and known.fetched > oldest:
            return known.bytes()
        path = DocumentPath(repository.name, f"/cvmfs/{repository.name}/{WHITELIST}".encode(), WHITELIST)
        return (await self._renewed(repository, path)).bytes()

    def _said(
        self, repository: Repository, path: DocumentPath, document: Document, outcome: Outcome
    ) -> Answer:
        data = document.bytes()
        media = _MEDIA.get(path.file[path.file.rfind(".") :], b"application/x-cvmfs")
        lifetime = max(0, int(document.fetched + self._config.fresh_s - time.time()))
        fields = answers.COMMON + b"Content-Type: %b\r\nCache-Control: max-age=%d\r\n" % (
            media,
            int(self._config.fresh_s),
        )
        if outcome is Outcome.STALE or not lifetime:
            return Answer(fields, outcome, repository.traffic, body=data, born=document.fetched)
        head = answers.resident_head(fields, len(data))
        expires = document.fetched + self._config.fresh_s
        key = _key(repository, path.file)
        resident = self._residents.get(key)
        if resident is None or resident.born != document.fetched:
            resident = Resident(key, head, len(data), document.fetched, expires, body=data)
            self._residents.add(resident)
        return Answer.of(resident, fields, outcome, repository.traffic)

    # the order of strata

    async def _order(self, repository: Repository, path: GeoPath) -> Answer:
        fields = (
            answers.COMMON + b"Content-Type: text/plain\r\nCache-Control: max-age=%d\r\n" % self._config.geo_s
        )
        traffic = repository.traffic
        if repository.section.geo == "configured":
            return Answer(fields, Outcome.MEMORY, traffic, body=ranks(path.servers, _hosts(repository)))
        known = self._geo.get(path.path)
        now = time.time()
        if known is not None and now - known[0] < self._config.geo_s:
            return Answer(fields, Outcome.MEMORY, traffic, body=known[1], born=known[0])
        try:
            body = await self._asked_order(repository, path)
        except EdgeError:  # an order of ours is better than none
            return Answer(fields, Outcome.STALE, traffic, body=ranks(path.servers, _hosts(repository)))
        self._geo[path.path] = (now, body)
        if len(self._geo) > _MAX_GEO:
            self._geo.popitem(last=False)
        return Answer(fields, Outcome.MISS, traffic, body=body, born=now)

    async def _asked_order(self, repository: Repository, path: GeoPath) -> bytes:
        limits = self._config.upstream
        race = Race(repository.origins, limits)
        deadline = asyncio.get_running_loop().time() + limits.answer_s
        origin, reply = await race.first(path.path, b"", deadline)
        body = await reply.read(65536)
        origin.worked()
        return body


def _key(repository: Repository, file: str) -> str:
    return f"document {repository.name}/{file}"


def _hosts(repository: Repository) -> list[str]:
    return [origin.host for origin in repository.origins]


def ranks(servers: tuple[str, ...], preferred: list[str]) -> bytes:
    """The geo service's answer: the numbers (from 1) of ``servers``, best first. Unknown ones come last."""
    hosts = [
        server.rpartition(":")[0] if ":" in server and not server.endswith("]") else server
        for server in servers
    ]
    place = {host: index for index, host in reversed(list(enumerate(preferred)))}
    order = sorted(range(len(hosts)), key=lambda i: place.get(hosts[i], len(preferred)))
    return ",".join(str(index + 1) for index in order).encode() + b"\n"


__all__ = ["MANIFEST", "Cvmfs", "ranks"]
