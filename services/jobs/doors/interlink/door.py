"""The interLink door: /create, /status, /delete, /getLogs, /pinglink, /updateCache, /system-info.

Virtual kubelets use GET and DELETE with bodies; the Go servers never look at the method, so neither do
we. Only 200 is success. The text of an error is shown to the pod's owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import msgspec
from aiohttp import web

from edged import __version__
from edged.config.doors import InterLink
from edged.errors import BadRequest, EdgeError, NotFound, Unauthenticated, Unavailable
from edged.http.api import read_body
from edged.http.problems import headers_of, status_of
from edged.http.underway import UnderWay
from edged.identity.client import Verdicts
from edged.identity.words import Action, Verdict
from edged.lifecycle import Background
from edged.logs import get_logger
from services.jobs.batch.protocol import SiteState
from services.jobs.doors.interlink import ping
from services.jobs.doors.interlink.callers import Callers, require
from services.jobs.doors.interlink.index import Index
from services.jobs.doors.interlink.intake import Intake
from services.jobs.doors.interlink.logs import LogReader
from services.jobs.doors.interlink.names import check_uid
from services.jobs.doors.interlink.pods import AskedPod, Create, LogRequest
from services.jobs.doors.interlink.records import Records
from services.jobs.doors.interlink.status import PodStatus, pod_status
from services.jobs.engine import Engine
from services.jobs.model import Job, State

log = get_logger("edged.jobs.interlink")

PATHS = ("/create", "/status", "/delete", "/getLogs", "/pinglink", "/updateCache", "/system-info")
SESSION_HEADER = "InterLink-Http-Session"
SMALL_BODY = 4 << 20  # a pod, without the objects it mounts
MANY_PODS = 2000
_STARTED = frozenset({State.RUNNING, State.SUSPENDED, State.FINISHING})
_encode = msgspec.json.Encoder().encode
_asked = msgspec.json.Decoder(list[AskedPod] | None).decode
_pod = msgspec.json.Decoder(AskedPod).decode
_logs = msgspec.json.Decoder(LogRequest).decode
_create = msgspec.json.Decoder(Create).decode
_creates = msgspec.json.Decoder(list[Create]).decode

T = TypeVar("T")
Answer = Callable[[web.BaseRequest, Verdict], Awaitable[web.StreamResponse]]


class Door:
    """What is behind every interLink listener: pods, and the jobs they became."""

    name = "interlink"

    def __init__(self, config: InterLink, engine: Engine, identity: Verdicts) -> None:
        self.config = config
        self.engine = engine
        self.index = Index(engine.registry)
        self.records = Records(engine, config.refresh_s)
        self.intake = Intake(config, engine, identity, self.index)
        self.under_way = UnderWay(identity)
        self._tasks: Background | None = None
        self._site: dict[str, dict[str, SiteState]] = {}

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """After the engine: its jobs are in memory."""
        self.index.load()
        self.engine.registry.listen(self._changed)
        async with Background() as work:
            self._tasks = work
            yield
        self._tasks = None

    def _changed(self, job: Job, before: State | None) -> None:
        """Read how the containers ended before anybody asks."""
        if self._tasks is not None and job.state.final and before is not None and self.index.holds(job):
            self._tasks.create_task(self._read_end(job))

    async def _read_end(self, job: Job) -> None:
        try:
            await self.records.ended(job)
        except EdgeError as error:
            log.warning("end of a pod not read", extra={"job": job.id, "reason": str(error)})

    # -- what is asked ------------------------------------------------------------------------------

    async def create(self, request: web.BaseRequest, caller: Verdict) -> web.StreamResponse:
        """Submit a pod; the same uid again gives the same job."""
        require(caller, Action.COMPUTE_CREATE, "create")
        data = await read_body(request, self.config.max_pod)
        body = await asyncio.to_thread(_decoded, data) if len(data) > BIG else _decoded(data)
        if self._tasks is None:
            raise Unavailable("the door is closing")
        job = await self.intake.take(caller, body, self._tasks)
        return _json({"PodUID": body.pod.metadata.uid, "PodJID": job.id})

    async def status(self, request: web.BaseRequest, caller: Verdict) -> web.StreamResponse:
        """The states of pods, from memory. Pods that are not known are left out."""
        require(caller, Action.COMPUTE_READ, "status")
        asked = _read(_asked, await read_body(request, SMALL_BODY)) or []
        if len(asked) > MANY_PODS:
            raise BadRequest(f"more than {MANY_PODS} pods in one question")
        return _json([found for pod in asked if (found := await self._pod_status(caller, pod)) is not None])

    async def _pod_status(self, caller: Verdict, pod: AskedPod) -> PodStatus | None:
        job = self.index.find(caller, pod.metadata.uid)
        if job is None:
            return None
        if job.state.final:
            return pod_status(pod, job, await self.records.ended(job))
        record = None
        if job.state in _STARTED and self._tasks is not None:
            record = self.records.now(job, self._tasks, alone=self._is_alone(pod))
        return pod_status(pod, job, record)

    def _is_alone(self, pod: AskedPod) -> bool:
        """Whether it has a single container, started once."""
        restarts = pod.spec.restart_policy == "OnFailure" or (
            pod.spec.restart_policy == "Always" and self.config.restart_always == "honour"
        )
        return not restarts and len(pod.spec.containers or ()) + len(pod.spec.init_containers or ()) == 1

    async def delete(self, request: web.BaseRequest, caller: Verdict) -> web.StreamResponse:
        """Cancel a pod's job. Its logs stay until the job is cleaned; unknown pods are deleted already."""
        require(caller, Action.COMPUTE_CANCEL, "delete")
        pod = _read(_pod, await read_body(request, SMALL_BODY))
        job = self.index.find(caller, check_uid(pod.metadata.uid))
        if job is not None:
            await self.engine.cancel(job)
        return web.Response(text="deleted" if job is not None else "no such pod here")

    async def logs(self, request: web.BaseRequest, caller: Verdict) -> web.StreamResponse:
        """A container's log."""
        require(caller, Action.COMPUTE_READ, "getLogs")
        asked = _read(_logs, await read_body(request, SMALL_BODY))
        job = self.index.find(caller, check_uid(asked.uid))
        if job is None:
            raise NotFound("no such pod here")
        over = partial(self._is_over, job, asked.container)
        return await LogReader(self.engine, job, asked, over, until=caller.token_expires_at).send(request)

    def _is_over(self, job: Job, container: str) -> bool:
        if self._tasks is None:
            return True
        record = self.records.now(job, self._tasks)
        one = record.containers.get(container) if record is not None else None
        return one is not None and one.state == "terminated"

    async def ping(self, request: web.BaseRequest, caller: Verdict) -> web.StreamResponse:
        """What the virtual node can hold."""
        require(caller, Action.COMPUTE_READ, "pinglink")
        await read_body(request, SMALL_BODY)
        queues = [
            queue
            for queue in self.engine.config.queues
            if (not queue.vos or caller.vo in queue.vos)
            and (not queue.classes or caller.job_class in queue.classes)
        ]
        own = (job for job in self.engine.registry.page(caller.account, "") if self.index.holds(job))
        states = await self._states(caller)
        return _json(ping.answer(self.config, queues, self.engine.drained, states, own))

    async def _states(self, caller: Verdict) -> dict[str, SiteState]:
        """What the batch systems say, or said last: the node stays up while they are silent."""
        try:
            self._site[caller.account] = await self.engine.sites(caller.account)
        except EdgeError as error:
            log.warning("no state of the site for a ping", extra={"reason": str(error)})
        return self._site.get(caller.account, {})

    async def update(self, request: web.BaseRequest, caller: Verdict) -> web.StreamResponse:
        """An API server's cache: there is none here."""
        require(caller, Action.COMPUTE_READ, "updateCache")
        await read_body(request, SMALL_BODY)
        return web.Response(text="updated")

    async def system(self, request: web.BaseRequest, caller: Verdict) -> web.StreamResponse:
        """Who answers."""
        require(caller, Action.COMPUTE_READ, "system-info")
        await read_body(request, SMALL_BODY)
        return _json({"status": "ok", "system": {"server": "edged", "version": __version__}})


class Listener:
    """The door as one listener shows it: who may call, and how its connections end."""

    def __init__(self, door: Door, callers: Callers, *, close: bool) -> None:
        """``close``: end each connection after its answer. With TLS, a virtual kubelet makes a new one
        for each call and never uses it again; kept open, hundreds of pods would hold thousands.
        """
        self._callers = callers
        self._close = close
        self._door = door
        self._answers: dict[str, Answer] = {
            "/create": door.create,
            "/status": self._status if callers.plugin else door.status,
            "/delete": door.delete,
            "/getLogs": door.logs,
            "/pinglink": door.ping,
            "/updateCache": door.update,
            "/system-info": door.system,
        }

    async def _status(self, request: web.BaseRequest, caller: Verdict) -> web.StreamResponse:
        """An API server turns a ping into the status of no pods, and hands our answer on."""
        if request.content_length is not None and request.content_length <= 4:
            return await self._door.ping(request, caller)
        return await self._door.status(request, caller)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request. Errors are plain text; only a failed authentication is told as one."""
        response = await self._answer(request)
        session = request.headers.get(SESSION_HEADER)
        if not response.prepared:
            if session:
                response.headers[SESSION_HEADER] = session[:200]
            if self._close:
                response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        answer = self._answers.get(path)
        try:
            if answer is None or request.method not in ("GET", "POST", "DELETE"):
                raise NotFound("no such interLink call")
            verdict = await self._callers.verdict(request)
            with self._door.under_way.of(verdict):
                return await answer(request, verdict)
        except Unauthenticated:
            raise
        except EdgeError as error:
            log.info(
                "interlink call refused",
                extra={
                    "call": path[:64],
                    "reason": str(error),
                    "trace": request.headers.get(SESSION_HEADER, "")[:200],
                },
            )
            return web.Response(status=status_of(error), text=error.message, headers=headers_of(error))


BIG = 64 * 1024


def _decoded(data: bytes) -> Create:
    """Both shapes of /create; API servers before 0.5.0 sent a list of one."""
    if data.lstrip()[:1] != b"[":
        return _read(_create, data)
    found = _read(_creates, data)
    if len(found) != 1:
        raise BadRequest("one pod at a time")
    return found[0]


def _read(decode: Callable[[bytes], T], data: bytes) -> T:
    try:
        return decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"not what interLink sends: {error}") from None


def _json(value: object) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json")
