"""From the body of /create to a job: once for each pod, however often it is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from edged.config.doors import InterLink, PodRule
from edged.errors import EdgeError
from edged.identity.client import Verdicts
from edged.identity.words import Verdict
from edged.lifecycle import Background
from edged.logs import audit, get_logger
from services.jobs.doors.interlink import bundle
from services.jobs.doors.interlink.callers import acting, rule_for
from services.jobs.doors.interlink.contents import Contents
from services.jobs.doors.interlink.index import Index, key_of
from services.jobs.doors.interlink.names import check_uid
from services.jobs.doors.interlink.plan import Planned, plan
from services.jobs.doors.interlink.pods import Create, Pod
from services.jobs.engine import Engine
from services.jobs.model import Description, Job, State

log = get_logger("edged.jobs.interlink")

RUNNER_LOG = "pod/runner.log"


class Intake:
    """Takes pods."""

    def __init__(self, config: InterLink, engine: Engine, identity: Verdicts, index: Index) -> None:
        self._config = config
        self._engine = engine
        self._identity = identity
        self._index = index
        self._taking: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()  # requests that hold such a lock or wait for it

    async def take(self, caller: Verdict, body: Create, tasks: Background) -> Job:
        """The pod's job, durable and with its files. Raises EdgeError in words for the pod's owner.

        What has begun is finished though the caller hangs up: half a pod is of no use to anybody.
        """
        return await tasks.whole(self._one_at_a_time(caller, body))

    async def _one_at_a_time(self, caller: Verdict, body: Create) -> Job:
        """Two requests for one pod follow each other: the second finds the job of the first."""
        uid = check_uid(body.pod.metadata.uid)
        key = key_of(caller, uid)
        lock = self._taking.setdefault(key, asyncio.Lock())
        self._waiting[key] += 1
        try:
            async with lock:
                return await self._take(caller, body, uid)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._taking[key]

    async def _take(self, caller: Verdict, body: Create, uid: str) -> Job:
        job = self._index.find(caller, uid)
        if job is not None and not (job.missing and job.state is State.ACCEPTED and not job.cancel):
            return job  # asked again: its answer was lost
        rule = self._rule(caller, body.pod)
        planned, archive = await asyncio.to_thread(self._translated, body, rule.pre_exec)
        if job is None:
            verdict = await acting(self._identity, caller, rule, body.pod)
            job = await self._accepted(verdict, self._description(caller, body.pod, planned))
        await self._give(job, archive)
        return job

    def _rule(self, caller: Verdict, pod: Pod) -> PodRule:
        try:
            return rule_for(pod, caller.account, self._config.rules)
        except EdgeError as error:
            audit(
                "interlink create",
                who=caller.principal.for_log(),
                account=caller.account,
                allowed=False,
                reason=error.message,
            )
            raise

    def _translated(self, body: Create, pre_exec: bool) -> tuple[Planned, bytes]:
        """In a thread: a pod may bring many megabytes."""
        planned = plan(body.pod, Contents.of(body), self._config, pre_exec=pre_exec)
        return planned, bundle.bundle(planned.plan, planned.files)

    def _description(self, caller: Verdict, pod: Pod, planned: Planned) -> Description:
        """The files are an input the job waits for: secrets never lie in the journal."""
        return Description(
            name=pod.name[:200],
            executable=self._config.node_python,
            arguments=("-I", "-B", bundle.NAME),
            stdout=RUNNER_LOG,
            join=True,
            inputs=(bundle.NAME,),
            queue=planned.size.queue,
            resources=planned.size.resources,
            key=key_of(caller, pod.metadata.uid),
        )

    async def _accepted(self, verdict: Verdict, description: Description) -> Job:
        outcome = (await self._engine.accept(verdict, [description]))[0]
        if isinstance(outcome, EdgeError):
            raise outcome
        self._index.add(outcome)
        return outcome

    async def _give(self, job: Job, archive: bytes) -> None:
        """Without its files there is no pod: then there shall be no job either."""
        try:
            await self._engine.put_input(job, bundle.NAME, _once(archive), mode=bundle.MODE)
        except EdgeError:
            await self._engine.cancel(job)
            raise


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
