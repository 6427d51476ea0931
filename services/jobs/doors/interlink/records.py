"""What the node's runner says of each container: read from the session in the background, kept here.

Status is answered from memory. A pod of one container is as its job is once the container runs, so
nothing more is read then; several are looked at again while somebody asks, seldom when nothing changes.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import msgspec
from msgspec import Meta

from edged.errors import EdgeError, NotFound
from edged.identity.words import JobId
from edged.lifecycle import Background
from edged.logs import get_logger
from services.jobs.doors.interlink import bundle
from services.jobs.engine import Engine
from services.jobs.model import Job

log = get_logger("edged.jobs.interlink")

FILE = "pod/status.json"
LIMIT = 1 << 20
SLOWEST_S = 20.0
AGAIN_S = (0.2, 1.0, 3.0)  # shared file systems show a node's last write a little later
SPARE = 1000


# Go's clients read 32 bits, and give up the statuses of all pods in an answer that has more
Int32 = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]


class Past(msgspec.Struct, frozen=True):
    """How a container ended before it was started again."""

    exit: Int32 = 0
    reason: str = ""
    message: str = ""
    started: float = 0.0
    ended: float = 0.0


class ContainerRecord(msgspec.Struct, frozen=True):
    """A container as the runner sees it. Times in Unix seconds. Written by the job: never trusted."""

    state: str = "waiting"
    reason: str = ""
    message: str = ""
    restarts: Int32 = 0
    exit: Int32 = 0
    started: float = 0.0
    ended: float = 0.0
    last: Past | None = None


class PodRecord(msgspec.Struct, frozen=True):
    """All containers of a pod."""

    containers: dict[str, ContainerRecord] = {}


class _Held:
    """The last record of a job, and when it is worth looking again."""

    __slots__ = ("due", "every_s", "reading", "record")

    def __init__(self, every_s: float) -> None:
        self.record: PodRecord | None = None
        self.every_s = every_s
        self.due = 0.0
        self.reading = False

    def all_started(self) -> bool:
        """Whether no container waits any more."""
        found = self.record.containers.values() if self.record is not None else ()
        return bool(found) and all(one.state != "waiting" for one in found)


class Records:
    """The records of all pods."""

    def __init__(self, engine: Engine, refresh_s: float) -> None:
        self._engine = engine
        self._refresh_s = refresh_s
        self._running: dict[JobId, _Held] = {}
        self._ended: dict[JobId, asyncio.Future[PodRecord | None]] = {}
        self._decode = msgspec.json.Decoder(PodRecord).decode

    def now(self, job: Job, tasks: Background, *, alone: bool = False) -> PodRecord | None:
        """What is known of a running pod, at once; looks again in the background when it is time.

        ``alone``: one container that is never started again. Once it runs, it is as its job is.
        """
        held = self._running.get(job.id)
        if held is None:
            held = self._running[job.id] = _Held(self._refresh_s)
        if not held.reading and time.monotonic() >= held.due and not (alone and held.all_started()):
            held.reading = True
            tasks.create_task(self._refresh(job, held))
        return held.record

    async def _refresh(self, job: Job, held: _Held) -> None:
        try:
            before, held.record = held.record, await self._read(job)
            same = held.record == before
            held.every_s = min(held.every_s * 1.5, SLOWEST_S) if same else self._refresh_s
        except EdgeError as error:
            log.info("no record of a pod yet", extra={"job": job.id, "reason": str(error)})
        finally:
            held.due = time.monotonic() + held.every_s
            held.reading = False

    async def ended(self, job: Job) -> PodRecord | None:
        """The last record of an ended job; None when the runner never wrote one."""
        found = self._ended.get(job.id)
        if found is None:
            found = self._ended[job.id] = asyncio.get_running_loop().create_future()
            try:
                found.set_result(await self._last(job))
            except BaseException:
                self._ended.pop(job.id, None)
                found.cancel()
                raise
            self._running.pop(job.id, None)
            self._prune()
        return await asyncio.shield(found)

    async def _last(self, job: Job) -> PodRecord | None:
        record: PodRecord | None = None
        if job.started_at is not None:
            for delay_s in (0.0, *AGAIN_S):
                await asyncio.sleep(delay_s)
                try:
                    record = await self._read(job)
                except EdgeError as error:
                    log.info("no record of an ended pod", extra={"job": job.id, "reason": str(error)})
                    continue
                if all(one.state == "terminated" for one in record.containers.values()):
                    break
        await self._drop(job)
        return record

    async def _drop(self, job: Job) -> None:
        """A pod that was never started still has its secrets in the session."""
        try:
            await self._engine.sessions.drop(self._engine.registry.grant(job.id), job.id, bundle.NAME)
        except NotFound:
            return
        except EdgeError as error:
            log.warning("files of an ended pod not removed", extra={"job": job.id, "reason": str(error)})

    async def _read(self, job: Job) -> PodRecord:
        opened = await self._engine.sessions.open(self._engine.registry.grant(job.id), job.id, FILE)
        try:
            content = await opened.read(LIMIT, 0)
        finally:
            opened.close()
        try:
            return self._decode(content)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise NotFound("the pod's status is not readable", detail=str(error)) from None

    def _prune(self) -> None:
        """Forget jobs that were cleaned."""
        if len(self._ended) > len(self._engine.registry) + SPARE:
            for job in [job for job in self._ended if self._engine.registry.get(job) is None]:
                del self._ended[job]
