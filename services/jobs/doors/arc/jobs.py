"""The ``/jobs`` calls: new, the list, and the actions on several jobs at once.

A call succeeds as a whole with 201; what became of each job stands inside, as strings. The list and the
status are polled all day for everything there is and are written by hand (tests/bench/arc_status.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any
from xml.etree.ElementTree import ParseError

import msgspec
from aiohttp import web
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from edged.errors import BadRequest, Busy, Conflict, EdgeError, NotFound, Unavailable
from edged.identity.words import JobId, Verdict
from services.jobs.doors.arc import formats, languages
from services.jobs.doors.arc.activity import activity
from services.jobs.doors.arc.exchange import Exchange
from services.jobs.doors.arc.formats import Format
from services.jobs.doors.arc.from_adl import local
from services.jobs.doors.arc.states import NONE, arc_state, wanted
from services.jobs.engine import Engine
from services.jobs.model import Description, Job

MAX_JOBS = 10_000
INSTANCES = 1000
AT_ONCE = 128
SMALL = 16 * 1024  # a description of this size is read in about a millisecond
Row = dict[str, Any]
Act = Callable[[Verdict, Job], Awaitable[Row]]


class _Ref(msgspec.Struct):
    id: str


class _Refs(msgspec.Struct):
    """``{"job": [...]}``, or one object where a list of one would be; everything else sent is ignored."""

    job: list[_Ref] | _Ref


_decode = msgspec.json.Decoder(_Refs).decode


class Jobs:
    """The calls on an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # -- the list -----------------------------------------------------------------------------------

    async def all(self, call: Exchange) -> web.Response:
        """All of the caller's jobs, ended ones too; clients take a missing one for lost."""
        states = wanted(call.query.get("state", ""))
        verdict = call.caller
        jobs = [job for job in self._engine.registry.page(verdict.account, "") if job.vo == verdict.vo]
        if states:
            rows = [(job.id, state) for job in jobs if (state := arc_state(job)) in states]
            return formats.ready(_with_states(rows, call.format), call.format)
        return formats.ready(_ids([job.id for job in jobs], call.format), call.format)

    # -- new ----------------------------------------------------------------------------------------

    async def new(self, call: Exchange) -> web.Response:
        """One description or several; each has its own outcome, in their order."""
        body = await call.body(self._engine.config.max_body)
        arc = self._engine.config.arc
        if arc is None:
            raise NotFound("no such door")
        read = partial(
            languages.descriptions,
            body,
            arc,
            self._engine.config.software,
            queue=call.query.get("queue", ""),
            delegation=call.query.get("delegation_id", ""),
        )
        found = read() if len(body) <= SMALL else await asyncio.to_thread(read)
        found = found * _instances(call)
        if len(found) > self._engine.config.bulk:
            raise BadRequest(f"at most {self._engine.config.bulk} jobs in one call")
        rows = [_made(outcome) for outcome in await self._accepted(call.caller, found)]
        return formats.answer({"job": rows}, "jobs", call.format, 201)

    async def _accepted(
        self, verdict: Verdict, found: Sequence[Description | EdgeError]
    ) -> Sequence[Job | EdgeError]:
        good = [one for one in found if isinstance(one, Description)]
        try:
            outcomes = iter(await self._engine.accept(verdict, good) if good else ())
        except (Busy, Unavailable) as error:
            if len(good) == len(found):
                raise
            outcomes = iter([error] * len(good))
        return [next(outcomes) if isinstance(one, Description) else one for one in found]

    # -- actions ------------------------------------------------------------------------------------

    async def status(self, call: Exchange) -> web.Response:
        """States, from memory."""
        registry, verdict = self._engine.registry, call.caller
        get, account, vo = registry.get, verdict.account, verdict.vo
        rows = []
        for name in await self._named(call):
            job = get(JobId(name))
            if job is None or job.account != account or job.vo != vo:
                rows.append((name, "", ""))
            else:
                rows.append((name, arc_state(job), job.reason))
        return formats.ready(_statuses(rows, call.format), call.format, 201)

    async def info(self, call: Exchange) -> web.Response:
        return await self._each(call, self._info_of(call))

    def _info_of(self, call: Exchange) -> Act:
        async def act(verdict: Verdict, job: Job) -> Row:
            ends_at = 0.0
            if job.delegation:
                try:
                    ends_at = self._engine.credentials.of(verdict.principal, job.delegation).expires_at
                except NotFound:
                    ends_at = 0.0
            document = {"ComputingActivity": activity(job, call.base, ends_at)}
            return {"status-code": "200", "reason": "OK", "id": job.id, "info_document": document}

        return act

    async def kill(self, call: Exchange) -> web.Response:
        """Ask for the end of jobs; of one that has ended already it is no error: brokers repeat."""

        async def act(_verdict: Verdict, job: Job) -> Row:
            await self._engine.cancel(job)
            return {"status-code": "202", "reason": "Queued for killing", "id": job.id}

        return await self._each(call, act)

    async def clean(self, call: Exchange) -> web.Response:
        """Remove jobs; one that runs still is removed when it has ended."""

        async def act(_verdict: Verdict, job: Job) -> Row:
            if job.state.final:
                await self._engine.clean(job)
            else:
                await self._engine.clean_at_end(job)
            return {"status-code": "202", "reason": "Queued for cleaning", "id": job.id}

        return await self._each(call, act)

    async def restart(self, call: Exchange) -> web.Response:
        async def act(verdict: Verdict, job: Job) -> Row:
            await self._engine.restart(verdict, job)
            return {"status-code": "202", "reason": "Queued for restarting", "id": job.id}

        return await self._each(call, act)

    async def delegations(self, call: Exchange) -> web.Response:
        async def act(_verdict: Verdict, job: Job) -> Row:
            found = [job.delegation] if job.delegation else []
            return {"status-code": "200", "reason": "OK", "id": job.id, "delegation_id": found}

        return await self._each(call, act)

    async def _each(self, call: Exchange, act: Act) -> web.Response:
        rows: list[Row] = []
        for some in batched(
            await self._named(call), AT_ONCE
        ):  # together they share one commit of the journal
            rows += await asyncio.gather(*[self._tried(call.caller, name, act) for name in some])
        return formats.answer({"job": rows}, "jobs", call.format, 201)

    async def _tried(self, verdict: Verdict, name: str, act: Act) -> Row:
        try:
            return await act(verdict, self._engine.registry.of(verdict, name))
        except NotFound:
            return {"status-code": "404", "reason": "Job not found", "id": name, "state": NONE}
        except Conflict as error:
            return {"status-code": "505", "reason": error.message, "id": name}
        except EdgeError as error:
            return {"status-code": "500", "reason": error.message, "id": name}

    async def _named(self, call: Exchange) -> list[str]:
        """The job ids of the body. Raises BadRequest."""
        body = await call.body(self._engine.config.max_body)
        names = _xml_ids(body) if body.lstrip()[:1] == b"<" else _json_ids(body)
        if len(names) > MAX_JOBS:
            raise BadRequest(f"at most {MAX_JOBS} jobs in one call")
        return names


def batched(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """``names`` in slices of ``size``."""
    return (names[start : start + size] for start in range(0, len(names), size))


def _instances(call: Exchange) -> int:
    """``instances``: the same job several times (1.1); ``instances_min`` is met, as it is all or nothing."""
    given = call.query.get("instances", "1")
    least = call.query.get("instances_min", given)
    if not (given.isdecimal() and least.isdecimal() and len(given) < 6 and 1 <= int(given) <= INSTANCES):
        raise BadRequest(f"instances: a number from 1 to {INSTANCES}")
    return int(given)


def _made(outcome: Job | EdgeError) -> Row:
    if isinstance(outcome, EdgeError):
        return {"status-code": "500", "reason": outcome.message}
    return {"status-code": "201", "reason": "Created", "id": outcome.id, "state": arc_state(outcome)}


def _json_ids(body: bytes) -> list[str]:
    if not body.strip():
        raise BadRequest("no jobs were named")
    try:
        found = _decode(body).job
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"a list of jobs is expected: {error}") from None
    return [one.id for one in found] if isinstance(found, list) else [found.id]


def _xml_ids(body: bytes) -> list[str]:
    try:
        root = fromstring(body.strip(), forbid_dtd=True)
    except DefusedXmlException:
        raise BadRequest("XML with a document type or entities is refused") from None
    except (ParseError, ValueError, LookupError) as error:
        raise BadRequest(f"not well-formed XML: {error}") from None
    jobs = [root] if local(root) == "job" else [child for child in root if local(child) == "job"]
    return [(child.text or "").strip() for job in jobs for child in job if local(child) == "id"]


# -- the two hot documents: ids are ours (letters and digits), states are ours, reasons are escaped ------


def _ids(names: Sequence[str], form: Format) -> bytes:
    if form is Format.XML:
        inner = "</id></job><job><id>".join(names)
        return _xml_jobs(f"<job><id>{inner}</id></job>" if names else "")
    if form is Format.JSON:
        inner = '"},{"id":"'.join(names)
        return f'{{"job":[{{"id":"{inner}"}}]}}'.encode() if names else b'{"job":[]}'
    return formats.write({"job": [{"id": name} for name in names]}, "jobs", form)


def _with_states(rows: Sequence[tuple[str, str]], form: Format) -> bytes:
    if form is Format.JSON:
        return ('{"job":[' + ",".join([f'{{"id":"{i}","state":"{s}"}}' for i, s in rows]) + "]}").encode()
    if form is Format.XML:
        return _xml_jobs("".join([f"<job><id>{i}</id><state>{s}</state></job>" for i, s in rows]))
    return formats.write({"job": [{"id": i, "state": s} for i, s in rows]}, "jobs", form)


def _statuses(rows: Sequence[tuple[str, str, str]], form: Format) -> bytes:
    """Rows of (name as it was sent, state or nothing for an unknown job, why)."""
    if form is Format.JSON:
        parts = [
            f'{{"status-code":"200","reason":"OK","id":"{name}","state":"{state}"}}'
            if state
            else '{"status-code":"404","reason":"Job not found","id":' + _quoted(name) + ',"state":"None"}'
            for name, state, _ in rows
        ]
        return ('{"job":[' + ",".join(parts) + "]}").encode()
    found = [
        {"status-code": "200", "reason": "OK", "id": name, "state": state}
        if state
        else {"status-code": "404", "reason": "Job not found", "id": name, "state": NONE}
        for name, state, _ in rows
    ]
    return formats.write({"job": found}, "jobs", form)


def _quoted(name: str) -> str:
    return msgspec.json.encode(name).decode()


def _xml_jobs(inner: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><jobs>{inner}</jobs>'.encode()
