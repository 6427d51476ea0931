"""``/jobs/ID/diagnose/NAME``: what A-REX keeps in its control directory, told from the engine's memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from edged.errors import EdgeError, NotFound
from edged.http.fd import requested
from services.jobs import journal
from services.jobs.batch.script import LOG
from services.jobs.doors.arc import formats
from services.jobs.doors.arc.activity import activity, moment
from services.jobs.doors.arc.exchange import Exchange
from services.jobs.doors.arc.formats import Format
from services.jobs.doors.arc.states import arc_state
from services.jobs.doors.arc.wish import split_source
from services.jobs.engine import Engine
from services.jobs.model import Job, State

TAIL = 64 * 1024
Maker = Callable[[Exchange, Job], Awaitable[str]]


class Diagnose:
    """The files, made when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._files: Mapping[str, Maker] = {
            "failed": self._failed,
            "local": self._local,
            "errors": self._errors,
            "description": self._description,
            "diag": self._diag,
            "comment": self._comment,
            "status": self._status,
            "acl": self._nothing,
            "xml": self._xml,
            "input": self._input,
            "output": self._output,
            "input_status": self._input_status,
            "output_status": self._output,
            "statistics": self._statistics,
        }

    async def get(self, call: Exchange) -> web.StreamResponse:
        """One file, whole or a range; the directory as a listing."""
        job = self._engine.registry.of(call.caller, call.name)
        if call.path in ("", "/"):
            return formats.answer({"file": sorted(self._files)}, "list", call.format)
        make = self._files.get(call.path)
        if make is None:
            raise NotFound("no such file")
        content = (await make(call, job)).encode("utf-8", "replace")
        span = requested(call.request.headers.get("Range"), len(content))
        if span is None:
            return web.Response(body=content, content_type="text/plain", charset="utf-8")
        headers = {"Content-Range": f"bytes {span.start}-{span.stop - 1}/{len(content)}"}
        body = content[span.start : span.stop]
        return web.Response(
            body=body, status=206, content_type="text/plain", charset="utf-8", headers=headers
        )

    async def _source(self, job: Job) -> tuple[str, str]:
        found = await self._engine.registry.store.read(lambda c: journal.description(c, job.id))
        return split_source(found.source) if found is not None else ("", "")

    async def _failed(self, _call: Exchange, job: Job) -> str:
        if job.state in (State.FINISHED,) or not job.state.final:
            raise NotFound("the job has not failed")
        return f"{job.reason or job.cause or arc_state(job)}\n"

    async def _local(self, _call: Exchange, job: Job) -> str:
        facts = {
            "globalid": job.id,
            "jobname": job.name,
            "subject": job.owner.subject,
            "queue": job.queue,
            "lrms": job.batch,
            "localid": job.ref.id if job.ref else "",
            "starttime": moment(job.created_at),
            "delegationid": job.delegation,
            "rerun": str(job.reruns),
        }
        return "".join(f"{key}={value}\n" for key, value in facts.items() if value)

    async def _errors(self, call: Exchange, job: Job) -> str:
        """The log brokers show: every step, the notes of the submission, the batch system's last words."""
        lines = [f"[{moment(step.at)}] {step.state.value} {step.reason}".rstrip() for step in job.history]
        notes = (await self._source(job))[1]
        lines += [f"note: {note}" for note in notes.splitlines()]
        if job.exit_code is not None:
            lines.append(f"exit code {job.exit_code}, signal {job.signal}")
        if job.nodes:
            lines.append(f"ran on {', '.join(job.nodes)}")
        log = await self._batch_log(job)
        return "\n".join([*lines, *(["--- batch system ---", log] if log else [])]) + "\n"

    async def _batch_log(self, job: Job) -> str:
        try:
            grant = self._engine.registry.grant(job.id)
            opened = await self._engine.sessions.open_own(grant, job.id, LOG.name)
        except EdgeError:
            return ""
        try:
            start = max(0, opened.entry.size - TAIL)
            return (await opened.read(TAIL, start)).decode("utf-8", "replace")
        finally:
            opened.close()

    async def _description(self, _call: Exchange, job: Job) -> str:
        text = (await self._source(job))[0]
        if not text:
            raise NotFound("the job was not described by a text of its own")
        return text

    async def _diag(self, _call: Exchange, job: Job) -> str:
        facts = {
            "nodename": ",".join(job.nodes),
            "exitcode": job.exit_code,
            "WallTime": f"{job.elapsed_s:.0f}s" if job.elapsed_s is not None else None,
            "TotalCPUTime": f"{job.cpu_s:.0f}s" if job.cpu_s is not None else None,
            "MaxResidentMemory": f"{job.max_rss // 1024}kB" if job.max_rss else None,
            "LRMSStartTime": moment(job.started_at) if job.started_at else None,
            "LRMSEndTime": moment(job.ended_at) if job.ended_at else None,
        }
        return "".join(f"{key}={value}\n" for key, value in facts.items() if value not in (None, ""))

    async def _comment(self, _call: Exchange, job: Job) -> str:
        notes = (await self._source(job))[1]
        return "".join(f"{line}\n" for line in (*notes.splitlines(), job.reason) if line)

    async def _status(self, _call: Exchange, job: Job) -> str:
        return f"{arc_state(job)}\n"

    async def _nothing(self, _call: Exchange, job: Job) -> str:
        raise NotFound("no such file")

    async def _xml(self, call: Exchange, job: Job) -> str:
        return formats.write(activity(job, call.base), "ComputingActivity", Format.XML).decode()

    async def _input(self, _call: Exchange, job: Job) -> str:
        return "".join(f"{name} *.*\n" for name in job.inputs)

    async def _input_status(self, _call: Exchange, job: Job) -> str:
        return "".join(f"{name}\n" for name in job.inputs if name not in job.missing)

    async def _output(self, _call: Exchange, job: Job) -> str:
        return "".join(f"{name}\n" for name in (("/",) if job.outputs is None else job.outputs))

    async def _statistics(self, _call: Exchange, job: Job) -> str:
        return "".join(f"{step.state.value.lower()}={moment(step.at)}\n" for step in job.history)
