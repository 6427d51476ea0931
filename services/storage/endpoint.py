"""From a request to a verb: names, the caller, the table of methods, and how refusals look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from edged.accounts.api import Files
from edged.errors import BadRequest, Denied, EdgeError, NotFound, Unauthenticated
from edged.http.api import bearer
from edged.http.request import Request, parsed
from edged.identity.client import Verdicts
from edged.identity.words import Action, Capability, Verdict
from edged.logs import get_logger
from services.storage import faults
from services.storage.exchange import Exchange
from services.storage.faults import MethodRefused
from services.storage.finding import Finding
from services.storage.index import Index
from services.storage.namespace import Above, Namespace, Target, path_of
from services.storage.sending import Connection
from services.storage.wellknown import WellKnown

log = get_logger("edged.storage")

Verb = Callable[[Exchange], Awaitable[web.StreamResponse]]

DAV_HEADERS = [("DAV", "1, 2"), ("MS-Author-Via", "DAV"), ("Accept-Ranges", "bytes")]
ALLOW = (
    "OPTIONS, GET, HEAD, PUT, DELETE, MKCOL, PROPFIND, PROPPATCH, COPY, MOVE, LOCK, UNLOCK"  # not POST, TRACE
)
READING = frozenset({"GET", "HEAD", "PROPFIND"})
ANONYMOUS = "anonymous"
LINGER = 64 * 1024  # an unread body longer than this is not waited for


class Endpoint:
    """The WebDAV view: ``handle`` is what the HTTP server calls."""

    def __init__(
        self,
        namespace: Namespace,
        identity: Verdicts,
        files: Files,
        verbs: Mapping[str, Verb],
        views: tuple[Finding, Index, WellKnown],
    ) -> None:
        self._namespace = namespace
        self._identity = identity
        self._files = files
        self._verbs = verbs
        self._finding, self._index, self._well_known = views

    async def handle(self, request: Request) -> web.StreamResponse:
        """Answer one request. Unauthenticated goes on to the server, which counts it."""
        try:
            return await self._answer(request)
        except Unauthenticated:
            raise
        except EdgeError as error:
            response = faults.response(error)
        if request.can_read_body and (request.content_length or LINGER + 1) > LINGER:
            response.force_close()  # the rest of the body is not taken: say so
        return response

    async def _answer(self, request: Request) -> web.StreamResponse:
        raw = request.raw_path
        if request.method == "OPTIONS":
            allow = ("Allow", ALLOW)
            return Connection(request).reply(200, [*DAV_HEADERS, allow, ("Content-Length", "0")])
        if "#" in raw:
            raise BadRequest("a fragment has no place in a request")
        path = path_of(raw)
        if path.startswith("/.well-known/"):
            return await self._well_known.answer(request, path)
        verb = self._verbs.get(request.method)
        if verb is None:
            raise MethodRefused(f"{request.method[:20]} is not possible here", allow=ALLOW)
        verdict, token, found = await self._caller(request, path)
        if isinstance(found, Above):
            return await self._above(request, found, verdict)
        exchange = Exchange(request, request.method, found, verdict, token, self._identity, self._files)
        return await verb(exchange)

    async def _caller(self, request: Request, path: str) -> tuple[Verdict, str, Target | Above]:
        """Who asks and for what; a caller without proof learns nothing about names."""
        if "Authorization" in request.headers:
            token = bearer(request)
            verdict = await self._identity.verdict(token)
            return verdict, token, self._namespace.locate(path)
        try:
            found = self._namespace.locate(path)
        except (NotFound, BadRequest):
            raise Unauthenticated("a bearer token is needed") from None
        export = found.export if isinstance(found, Target) else None
        if export is None or export.anonymous is None or request.method not in READING:
            raise Unauthenticated("a bearer token is needed")
        verdict = await self._identity.asserted(ANONYMOUS, export.anonymous)  # type: ignore[arg-type]
        return _reading_only(verdict, export.vo), "", found

    async def _above(self, request: Request, above: Above, verdict: Verdict) -> web.StreamResponse:
        if request.method == "PROPFIND":
            return await self._finding.above(parsed(request), above, verdict.vo)
        if request.method == "GET":
            return self._index.above(above, verdict.vo)
        if request.method == "HEAD":
            return Connection(request).reply(200, [("Content-Length", "0")])
        raise Denied("nothing can be changed above the exports")


def _reading_only(verdict: Verdict, vo: str) -> Verdict:
    """An anonymous caller: may read the one export, whatever else the assertion would allow."""
    everything = (Capability(Action.STORAGE_READ, "/"),)
    return msgspec.structs.replace(verdict, vo=vo, capabilities=everything)
