"""The table of the ARC REST door, and how a request finds its row.

No row without an access: what the caller's token (or the site's rule for X.509 subjects) must allow.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import web

from edged.config import Config
from edged.errors import Denied, EdgeError, NotFound, Unauthenticated
from edged.http.operations import AUTHENTICATED, PUBLIC, Access, Authenticated, Public, Requires
from edged.http.server import UNAUTHENTICATED
from edged.http.underway import UnderWay
from edged.identity.client import Verdicts
from edged.identity.words import Action, Verdict
from edged.logs import audit
from services.jobs.doors.arc import formats, glue
from services.jobs.doors.arc.callers import Callers
from services.jobs.doors.arc.delegations import Delegations
from services.jobs.doors.arc.diagnose import Diagnose
from services.jobs.doors.arc.exchange import MAX_PATH, Exchange
from services.jobs.doors.arc.formats import Format
from services.jobs.doors.arc.jobs import Jobs
from services.jobs.doors.arc.session import SessionDirectory
from services.jobs.engine import Engine

PREFIX = "/arex/rest"
VERSIONS = ("1.0", "1.1")
GLUE_FRESH_S = 10.0

CREATE, READ = Requires(Action.COMPUTE_CREATE), Requires(Action.COMPUTE_READ)
CANCEL, MODIFY = Requires(Action.COMPUTE_CANCEL), Requires(Action.COMPUTE_MODIFY)

Run = Callable[[Exchange], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Row:
    """One call: who may, what is done, and with which status a text nobody can read is refused."""

    access: Access
    run: Run
    unreadable: int = 400


class ArcDoor:
    """``handle`` answers everything below /arex."""

    def __init__(self, config: Config, engine: Engine, identity: Verdicts) -> None:
        if config.jobs is None or config.jobs.arc is None:
            raise RuntimeError("no [jobs.arc] section")
        self._config = config
        self._engine = engine
        self._callers = Callers(config, config.jobs.arc, identity)
        self._under_way = UnderWay(identity)
        self._offers: dict[tuple[str, str], tuple[float, bytes]] = {}
        self._rows = self._table()

    def _table(self) -> dict[tuple[str, str, str], Row]:
        """(method, resource, action) → row. 500 for garbage is A-REX's own word."""
        jobs, session = Jobs(self._engine), SessionDirectory(self._engine)
        given, diagnose = Delegations(self._engine), Diagnose(self._engine)
        return {
            ("GET", "versions", ""): Row(PUBLIC, self.versions),
            ("GET", "info", ""): Row(AUTHENTICATED, self.info),
            ("GET", "jobs", ""): Row(READ, jobs.all),
            ("POST", "jobs", "new"): Row(CREATE, jobs.new, 500),
            ("POST", "jobs", "status"): Row(READ, jobs.status, 500),
            ("POST", "jobs", "info"): Row(READ, jobs.info, 500),
            ("POST", "jobs", "kill"): Row(CANCEL, jobs.kill, 500),
            ("POST", "jobs", "clean"): Row(MODIFY, jobs.clean, 500),
            ("POST", "jobs", "restart"): Row(CREATE, jobs.restart, 500),
            ("POST", "jobs", "delegations"): Row(READ, jobs.delegations, 500),
            ("GET", "delegations", ""): Row(READ, given.all),
            ("POST", "delegations", "new"): Row(CREATE, given.new),
            ("PUT", "delegation", ""): Row(CREATE, given.put),
            ("POST", "delegation", "get"): Row(READ, given.get),
            ("POST", "delegation", "renew"): Row(CREATE, given.renew),
            ("POST", "delegation", "delete"): Row(CREATE, given.delete),
            ("GET", "job", ""): Row(READ, session.folders),
            ("PROPFIND", "job", ""): Row(READ, session.propfind_folders),
            ("GET", "session", ""): Row(READ, session.get),
            ("HEAD", "session", ""): Row(READ, session.get),
            ("PUT", "session", ""): Row(CREATE, session.put),
            ("DELETE", "session", ""): Row(MODIFY, session.delete),
            ("PROPFIND", "session", ""): Row(READ, session.propfind),
            ("GET", "diagnose", ""): Row(READ, diagnose.get),
            ("HEAD", "diagnose", ""): Row(READ, diagnose.get),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; expected errors are worded for ARC's clients."""
        form = formats.wanted(request.headers.get("Accept", ""))
        unreadable = 0
        try:
            call, resource = find(request, form)
            row = self._row(request, resource)
            if row is None:
                return formats.refusal(NotFound("Not implemented"), form, 501)
            unreadable = row.unreadable
            call.verdict = await self._admit(row.access, request, resource)
            with self._under_way.of(call.verdict) if call.verdict is not None else nullcontext():
                return await row.run(call)
        except Unauthenticated as error:
            response = formats.refusal(error, form)
            response[UNAUTHENTICATED] = True
            return response
        except EdgeError as error:
            return formats.refusal(error, form, unreadable if error.code == "bad-request" else 0)

    def _row(self, request: web.BaseRequest, resource: str) -> Row | None:
        action = request.rel_url.query.get("action", "") if request.method == "POST" else ""
        action, _, _ = action.partition("/")  # A-REX's own location repeats the query: ?action=new/ID
        return self._rows.get((request.method, resource, action))

    async def _admit(self, access: Access, request: web.BaseRequest, resource: str) -> Verdict | None:
        if isinstance(access, Public):
            return None
        verdict = await self._callers.verdict(request)
        if isinstance(access, Authenticated):
            return verdict
        if isinstance(access, Requires) and verdict.has(access.action):
            return verdict
        wanted = access.action.value if isinstance(access, Requires) else "admin"
        audit(
            f"arc {request.method} {resource}",
            who=verdict.principal.for_log(),
            account=verdict.account,
            allowed=False,
            reason=f"no {wanted}",
        )
        raise Denied(f"Operation is not allowed: the token has no {wanted}")

    async def versions(self, call: Exchange) -> web.StreamResponse:
        return formats.answer({"version": list(VERSIONS)}, "versions", call.format)

    async def info(self, call: Exchange) -> web.StreamResponse:
        """GLUE 2 as the caller's VO sees the site; made again after some seconds."""
        key = (call.caller.vo, f"{call.base} {call.format.value}")
        made_at, body = self._offers.get(key, (0.0, b""))
        now = time.time()
        if now - made_at > GLUE_FRESH_S:
            body = await self._document(call, now)
            if len(self._offers) > 256:
                self._offers.clear()
            self._offers[key] = (now, body)
        return formats.ready(body, call.format)

    async def _document(self, call: Exchange, now: float) -> bytes:
        try:
            sites = await self._engine.sites(call.caller.account)
        except EdgeError:  # a batch system that does not answer leaves its figures out
            sites = {}
        offer = glue.Offer(
            config=self._config,
            jobs=self._engine.config,
            vo=call.caller.vo,
            base=call.base,
            now=now,
            counts=glue.count(list(self._engine.registry)),
            sites=sites,
            drained=self._engine.drained,
        )
        document = glue.document(offer)
        if call.format is Format.XML:
            inner = formats.element("Domains", document["Domains"])
            spaced = inner.replace("<Domains>", f'<Domains xmlns="{glue.NAMESPACE}">', 1)
            return f'<?xml version="1.0" encoding="UTF-8"?><InfoRoot>{spaced}</InfoRoot>'.encode()
        return formats.write(document, "InfoRoot", call.format)


def find(request: web.BaseRequest, form: Format) -> tuple[Exchange, str]:
    """What a path names: a resource with its job or delegation. Raises NotFound."""
    raw = request.rel_url.raw_path
    if len(raw) > MAX_PATH or not (raw == PREFIX or raw.startswith(PREFIX + "/")):
        raise NotFound("no such path")
    parts = raw[len(PREFIX) :].strip("/").split("/") if raw.strip("/") != PREFIX.strip("/") else []
    if not parts:
        return Exchange(request, None, form, ""), "versions"
    version, *rest = parts
    if version not in VERSIONS:
        raise NotFound("Unknown version")
    call = Exchange(request, None, form, version)
    match rest:
        case ["info" | "jobs" | "delegations" as resource]:
            return call, resource
        case ["delegations", name] | ["delegations", "new", name]:
            call.name = unquote(name)
            return call, "delegation"
        case ["jobs", name]:
            call.name = unquote(name)
            return call, "job"
        case ["jobs", name, "session" | "diagnose" as resource, *_]:
            call.name = unquote(name)
            call.path = unquote(raw.partition(f"/{resource}")[2].removeprefix("/"))
            return call, resource
    raise NotFound("Unknown function")
