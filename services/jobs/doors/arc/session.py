"""A job's session directory over HTTP: files in, files and listings out, and PROPFIND for arcls and arcget.

Once a job has ended only its declared outputs are shown, as A-REX keeps nothing else: DIRAC fetches all it
sees. edged's own files are never shown.
"""

from __future__ import annotations

from email.utils import formatdate
from urllib.parse import quote

from aiohttp import web

from edged.accounts.api import Entry, Kind, OpenFile
from edged.errors import BadRequest, Conflict, EdgeError, NotFound, Unsupported
from edged.http import fd
from services.jobs.doors.arc import formats
from services.jobs.doors.arc.activity import HIDDEN, moment
from services.jobs.doors.arc.exchange import Exchange
from services.jobs.doors.arc.formats import Format
from services.jobs.engine import Engine
from services.jobs.model import Job, State

FOLDERS = ("session", "diagnose")


class SessionDirectory:
    """The calls below ``/jobs/ID/session``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def _job(self, call: Exchange) -> Job:
        return self._engine.registry.of(call.caller, call.name)

    async def get(self, call: Exchange) -> web.StreamResponse:
        """A file, whole or a range; a directory as a listing."""
        job, path = self._job(call), segments(call.path)
        if path and not call.path.endswith("/"):
            if not shown(job, path):
                raise NotFound("no such file")
            try:
                opened = await self._open(job, path)
            except (BadRequest, Conflict, Unsupported):  # a directory
                pass
            else:
                return await fd.send(call.request, opened)
        return _listing(await self._entries(job, path), call.format)

    async def _open(self, job: Job, path: str) -> OpenFile:
        return await self._engine.sessions.open(self._engine.registry.grant(job.id), job.id, path)

    async def _entries(self, job: Job, path: str) -> list[Entry]:
        """What a directory shows. The session directory of a job not yet prepared is empty."""
        try:
            found = await self._engine.sessions.list(self._engine.registry.grant(job.id), job.id, path)
        except NotFound:
            if path:
                raise
            return []
        prefix = f"{path}/" if path else ""
        return [one for one in found if shown(job, prefix + one.name)]

    async def put(self, call: Exchange) -> web.StreamResponse:
        """An input file. Sending the same bytes again is no error: the answer may have been lost."""
        job, path = self._job(call), segments(call.path)
        if not path:
            raise BadRequest("a file name is missing")
        if "Content-Range" in call.request.headers:
            raise BadRequest("files are sent whole")
        await call.invite()
        if job.state is State.ACCEPTED:
            await self._engine.put_input(job, path, call.request.content.iter_any())
        elif not await self._has(call, job, path):
            raise Conflict(f"the job is {job.state.value} and takes no more files")
        return web.Response(status=200)

    async def _has(self, call: Exchange, job: Job, path: str) -> bool:
        """Whether an input is there already, byte by byte as it is sent now."""
        if path not in job.inputs:
            return False
        try:
            opened = await self._open(job, path)
        except EdgeError:
            return False
        try:
            position = 0
            async for block in call.request.content.iter_any():
                if await opened.read(len(block), position) != block:
                    return False
                position += len(block)
            return position == opened.entry.size
        finally:
            opened.close()

    async def delete(self, call: Exchange) -> web.StreamResponse:
        job, path = self._job(call), segments(call.path)
        if not path:
            raise BadRequest("the session directory goes with its job: clean it")
        await self._engine.sessions.delete(self._engine.registry.grant(job.id), job.id, path)
        return web.Response(status=202)

    async def propfind(self, call: Exchange) -> web.StreamResponse:
        """RFC 4918 §9.1 for depth 0 and 1, with the properties ARC's clients read."""
        await call.body(64 * 1024)
        depth = call.request.headers.get("Depth", "1")
        if depth not in ("0", "1"):
            raise BadRequest("Depth: 0 or 1")
        job, path = self._job(call), segments(call.path)
        here = f"/arex/rest/{call.version}/jobs/{job.id}/session/" + quote(path)
        entry = await self._entry(job, path) if path else None
        if entry is not None and entry.kind is Kind.FILE:
            return _multistatus([_properties(here, entry)])
        rows = [_properties(here.rstrip("/") + "/", entry)]
        entries = await self._entries(job, path)
        if depth == "1":
            rows += [_properties(f"{here.rstrip('/')}/{quote(one.name)}", one) for one in entries]
        return _multistatus(rows)

    async def folders(self, call: Exchange) -> web.StreamResponse:
        """What lies below a job: for people, and for arcls given a job's own URL."""
        self._job(call)
        return formats.answer({"file": [], "dir": list(FOLDERS), "dirs": list(FOLDERS)}, "list", call.format)

    async def propfind_folders(self, call: Exchange) -> web.StreamResponse:
        """The same for arcls."""
        await call.body(64 * 1024)
        here = f"/arex/rest/{call.version}/jobs/{self._job(call).id}/"
        below = FOLDERS if call.request.headers.get("Depth", "1") == "1" else ()
        return _multistatus([_properties(one, None) for one in (here, *(f"{here}{f}/" for f in below))])

    async def _entry(self, job: Job, path: str) -> Entry:
        parent, _, name = path.rpartition("/")
        for entry in await self._entries(job, parent):
            if entry.name == name:
                return entry
        raise NotFound("no such file")


def segments(path: str) -> str:
    """The path below the session directory, decoded. NotFound for one that would leave it."""
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts):
        raise NotFound("Wrong path")
    if parts and parts[0] in (".edged", HIDDEN.rstrip("/")):
        raise NotFound("no such file")
    return "/".join(parts)


def shown(job: Job, name: str) -> bool:
    """Whether the owner sees this file or directory."""
    if name.partition("/")[0] in (".edged", HIDDEN.rstrip("/")):
        return False
    if not job.state.final or job.outputs is None:
        return True
    return any(
        name == kept or name.startswith(f"{kept}/") or kept.startswith(f"{name}/") for kept in job.outputs
    )


def _listing(entries: list[Entry], form: Format) -> web.Response:
    files = [one for one in entries if one.kind is Kind.FILE]
    folders = [one.name for one in entries if one.kind is Kind.DIRECTORY]
    if form is Format.XML:
        inner = [f'<file size="{one.size}">{formats.text(one.name)}</file>' for one in files]
        inner += [formats.element("dir", name) for name in folders]
        body = f'<?xml version="1.0" encoding="UTF-8"?><list>{"".join(inner)}</list>'.encode()
        return formats.ready(body, form)
    # A-REX says dir; pyarcrest walks down what stands under dirs
    found = {"file": [one.name for one in files], "dir": folders, "dirs": folders}
    return formats.answer(found, "list", form)


def _properties(href: str, entry: Entry | None) -> str:
    folder = entry is None or entry.kind is Kind.DIRECTORY
    kind = "<D:resourcetype><D:collection/></D:resourcetype>" if folder else "<D:resourcetype/>"
    more = ""
    if entry is not None:
        modified = entry.mtime_ns / 1e9
        more = f"<D:getlastmodified>{formatdate(modified, usegmt=True)}</D:getlastmodified>"
        more += f"<D:creationdate>{moment(entry.ctime_ns / 1e9)}</D:creationdate>"
    if entry is not None and not folder:
        more += f"<D:getcontentlength>{entry.size}</D:getcontentlength>"
    name = formats.element("D:displayname", entry.name if entry else "")
    return (
        f"<D:response>{formats.element('D:href', href)}<D:propstat><D:prop>{name}{kind}{more}</D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
    )


def _multistatus(rows: list[str]) -> web.Response:
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><D:multistatus xmlns:D="DAV:">{"".join(rows)}</D:multistatus>'
    )
    return formats.ready(body.encode(), Format.XML, 207)
