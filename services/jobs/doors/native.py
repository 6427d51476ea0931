"""The native API: ``/v1/jobs`` and ``/v1/site``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from edged import __version__
from edged.config import Config
from edged.errors import BadRequest, EdgeError, NotFound
from edged.http import fd
from edged.http.operations import ADMIN, Call, Operation, Reply, Requires
from edged.http.problems import status_of
from edged.identity.words import Action
from edged.usage import Span
from services.jobs import journal, usage
from services.jobs.engine import Engine
from services.jobs.logs import LogRequest, send_log
from services.jobs.model import Description, Job, State, View, view
from services.jobs.sessions import tree

CREATE, READ = Requires(Action.COMPUTE_CREATE), Requires(Action.COMPUTE_READ)
CANCEL, MODIFY = Requires(Action.COMPUTE_CANCEL), Requires(Action.COMPUTE_MODIFY)
PAGE = 1000


class Bulk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Up to 1,000 descriptions; each has its own outcome."""

    jobs: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=1000)]


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """One description's answer: the job, or what was wrong with it. ``status`` as if sent alone."""

    status: int
    job: View | None = None
    error: str = ""
    detail: str = ""


class Outcomes(msgspec.Struct, frozen=True):
    """In the order of the descriptions."""

    jobs: list[Outcome]


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``state``: comma-separated; ``cursor``: the ``next`` of the page before; ``ids``: comma-separated."""

    state: str = ""
    queue: str = ""
    name: str = ""
    array: str = ""
    ids: Annotated[str, Meta(max_length=30_000)] = ""
    cursor: str = ""
    limit: Annotated[int, Meta(ge=1, le=PAGE)] = 100
    newest: bool = False


class Page(msgspec.Struct, frozen=True):
    """Some jobs; ``next`` is empty on the last page."""

    jobs: list[View]
    next: str = ""


class ShowQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``wait``: seconds to wait for a change after ``seen``, the ``changed_at`` known to the caller."""

    wait: Annotated[float, Meta(ge=0, le=120)] = 0
    seen: float = 0


class FileEntry(msgspec.Struct, frozen=True):
    """A file in the session directory. ``modified`` in Unix seconds."""

    name: str
    size: int
    modified: float


class FileList(msgspec.Struct, frozen=True):
    """All files of a job."""

    files: list[FileEntry]


class Drain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Queues that take no new jobs; ``["*"]`` for all, ``[]`` to open again."""

    queues: list[str]


class UsageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Days as YYYY-MM-DD, UTC, both inclusive."""

    since: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")] = "1970-01-01"
    until: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")] = "9999-12-31"


class NativeDoor:
    """The table of operations on an engine."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self._config = config
        self._engine = engine
        self._decode = msgspec.json.Decoder(Description)

    def operations(self) -> tuple[Operation, ...]:
        """Routes, access and OpenAPI come from here."""
        limit = self._engine.config.max_body
        # fmt: off
        return (
            Operation(method="POST", path="/v1/jobs", access=CREATE, run=self.submit,
                      summary="Submit a job", takes=Description, returns=View, status=201, problems=(404,
                      409, 413), max_body=limit),
            Operation(method="POST", path="/v1/jobs/bulk", access=CREATE, run=self.submit_bulk,
                      summary="Submit up to 1,000 jobs", takes=Bulk, returns=Outcomes, problems=(413,),
                      max_body=limit),
            Operation(method="GET", path="/v1/jobs", access=READ, run=self.list,
                      summary="List jobs", query=ListQuery, returns=Page),
            Operation(method="GET", path="/v1/jobs/{id}", access=READ, run=self.show,
                      summary="Show a job, or wait until it changes", query=ShowQuery, returns=View,
                      problems=(404,)),
            Operation(method="GET", path="/v1/jobs/{id}/description", access=READ, run=self.description,
                      summary="What was asked for", returns=Description, problems=(404,)),
            Operation(method="POST", path="/v1/jobs/{id}/cancel", access=CANCEL, run=self.cancel,
                      summary="Cancel a job", returns=View, status=202, problems=(404,)),
            Operation(method="DELETE", path="/v1/jobs/{id}", access=MODIFY, run=self.clean,
                      summary="Remove an ended job and its files", problems=(404, 409)),
            Operation(method="PUT", path="/v1/jobs/{id}/files/{name...}", access=CREATE, run=self.put,
                      summary="Upload an input", takes=bytes, status=201, problems=(404, 409, 413, 507)),
            Operation(method="GET", path="/v1/jobs/{id}/files", access=READ, run=self.files,
                      summary="List a job's files", returns=FileList, problems=(404,)),
            Operation(method="GET", path="/v1/jobs/{id}/files/{name...}", access=READ, run=self.get,
                      summary="Download a file, whole or a range", returns=web.StreamResponse,
                      problems=(404, 416)),
            Operation(method="GET", path="/v1/jobs/{id}/logs", access=READ, run=self.log,
                      summary="The end of stdout or stderr, or follow it", query=LogRequest,
                      returns=web.StreamResponse, problems=(404,)),
            Operation(method="GET", path="/v1/events", access=READ, run=self.events,
                      summary="Changes of your jobs as server-sent events", returns=web.StreamResponse),
            Operation(method="GET", path="/v1/site", access=READ, run=self.site,
                      summary="Queues, limits, GPUs, drain, software", returns=dict[str, Any]),
            Operation(method="GET", path="/v1/usage", access=READ, run=self.usage,
                      summary="CPU and GPU use of your VO by day", query=UsageQuery, returns=dict[str, Any]),
            Operation(method="POST", path="/v1/drain", access=ADMIN, run=self.drain,
                      summary="Stop or resume taking new jobs", takes=Drain, returns=Drain),
        )
        # fmt: on

    def _job(self, call: Call) -> Job:
        return self._engine.registry.of(call.caller, call.path["id"])

    async def submit(self, call: Call) -> Reply:
        description: Description = call.body
        header = call.request.headers.get("Idempotency-Key", "")
        if header:
            if len(header) > 200:
                raise BadRequest("Idempotency-Key is over 200 characters")
            description = msgspec.structs.replace(description, key=header)
        outcomes = await self._engine.accept(call.caller, [description])
        first = outcomes[0]
        if isinstance(first, EdgeError):
            raise first
        headers = {"Location": f"/v1/jobs/{first.id}"}
        return Reply(view(first), status=201, headers=headers)

    async def submit_bulk(self, call: Call) -> Outcomes:
        drafts = [self._draft(raw) for raw in call.body.jobs]
        good = [draft for draft in drafts if isinstance(draft, Description)]
        if any(draft.array for draft in good):
            raise BadRequest("arrays are submitted one by one")
        answers = iter(await self._engine.accept(call.caller, good) if good else ())
        return Outcomes([_outcome(next(answers) if isinstance(d, Description) else d) for d in drafts])

    def _draft(self, raw: msgspec.Raw) -> Description | EdgeError:
        try:
            return self._decode.decode(raw)
        except (msgspec.MsgspecError, RecursionError) as error:
            return BadRequest(str(error))

    async def list(self, call: Call) -> Page:
        query: ListQuery = call.query
        states = _states(query.state)
        wanted = set(filter(None, query.ids.split(",")))
        found: list[View] = []
        for job in self._engine.registry.page(call.caller.account, query.cursor, query.newest):
            if job.vo != call.caller.vo or not _fits(job, query, states, wanted):
                continue
            if len(found) == query.limit:
                return Page(found, found[-1].id)
            found.append(view(job, full=False))
        return Page(found)

    async def show(self, call: Call) -> View:
        job = self._job(call)
        if call.query.wait:
            job = await self._engine.wait(job, call.query.seen, call.query.wait)
        return view(job)

    async def description(self, call: Call) -> Description:
        job = self._job(call)
        found = await self._engine.registry.store.read(lambda c: journal.description(c, job.id))
        if found is None:
            raise NotFound("no such job")
        return found

    async def cancel(self, call: Call) -> View:
        job = self._job(call)
        await self._engine.cancel(job)
        return view(job)

    async def clean(self, call: Call) -> None:
        await self._engine.clean(self._job(call))

    async def put(self, call: Call) -> Reply:
        job = self._job(call)
        await self._engine.put_input(job, call.path["name"], call.request.content.iter_any())
        return Reply(None, status=201)

    async def files(self, call: Call) -> FileList:
        job = self._job(call)
        entries = await tree(self._engine.sessions, self._engine.registry.grant(job.id), job.id)
        return FileList([FileEntry(e.name, e.size, e.mtime_ns / 1e9) for e in entries])

    async def get(self, call: Call) -> web.StreamResponse:
        job = self._job(call)
        grant = self._engine.registry.grant(job.id)
        opened = await self._engine.sessions.open(grant, job.id, call.path["name"])
        return await fd.send(call.request, opened)

    async def log(self, call: Call) -> web.StreamResponse:
        return await send_log(
            call.request, self._engine, self._job(call), call.query, until=call.caller.token_expires_at
        )

    async def events(self, call: Call) -> web.StreamResponse:
        """Server-sent events: ``data`` is the job's view; a comment every 15 s keeps proxies awake."""
        response = web.StreamResponse(headers={"Cache-Control": "no-store"})
        response.content_type = "text/event-stream"
        await response.prepare(call.request)
        until = call.caller.token_expires_at
        with self._engine.registry.watch(call.caller.account) as changes:
            while (left := until - time.time()) > 0:
                line = b": alive\n\n"
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(15.0, left)):
                        job = await changes.get()
                        if job.vo != call.caller.vo:
                            continue
                        line = b"data: " + msgspec.json.encode(view(job, full=False)) + b"\n\n"
                await response.write(line)
        return response

    async def site(self, call: Call) -> dict[str, Any]:
        states = await self._engine.sites(call.caller.account)
        jobs = self._engine.config
        return {
            "site": self._config.site.name,
            "version": __version__,
            "drained": sorted(self._engine.drained),
            "queues": [_queue(q) for q in jobs.queues if not q.vos or call.caller.vo in q.vos],
            "software": [msgspec.to_builtins(item.model_dump()) for item in jobs.software],
            "limits": {"bulk": jobs.bulk, "max_body": jobs.max_body, "max_input": jobs.max_input},
            "batch": msgspec.to_builtins(states),
        }

    async def usage(self, call: Call) -> dict[str, Any]:
        query: UsageQuery = call.query
        span = Span(query.since, query.until, (call.caller.vo,))
        rows = await self._engine.registry.store.read(lambda c: usage.rows(c, span))
        return {"vo": call.caller.vo, "rows": [msgspec.structs.asdict(row) for row in rows]}

    async def drain(self, call: Call) -> Drain:
        await self._engine.drain(call.body.queues)
        return call.body  # type: ignore[no-any-return]


def _outcome(answer: Job | EdgeError) -> Outcome:
    if isinstance(answer, EdgeError):
        return Outcome(status_of(answer), error=answer.code, detail=answer.message)
    return Outcome(201, job=view(answer, full=False))


def _states(text: str) -> frozenset[State]:
    try:
        return frozenset(State(word.strip().upper()) for word in text.split(",") if word.strip())
    except ValueError:
        raise BadRequest(f"state: one of {', '.join(State)}") from None


def _fits(job: Job, query: ListQuery, states: frozenset[State], wanted: set[str]) -> bool:
    return (
        (not states or job.state in states)
        and (not wanted or job.id in wanted)
        and query.queue in ("", job.queue)
        and query.name in ("", job.name)
        and query.array in ("", job.array)
    )


def _queue(queue: Any) -> dict[str, Any]:
    shown = (
        "name",
        "max_nodes",
        "max_cpus_per_node",
        "max_memory_per_node",
        "max_walltime_s",
        "default_walltime_s",
    )
    return {
        **{key: getattr(queue, key) for key in shown},
        "gpus": [{"kind": g.kind, "per_node": g.per_node} for g in queue.gpus],
        "gres": list(queue.gres),
        "mpi": list(queue.mpi),
    }


def operations(doors: Sequence[NativeDoor]) -> tuple[Operation, ...]:
    """All operations of some doors."""
    return tuple(operation for door in doors for operation in door.operations())
