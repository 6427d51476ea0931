"""From a description to jobs that could be accepted: policy, queue, delegation, the elements of an array."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection

import msgspec

from edged.config.identity import Mapping
from edged.config.jobs import Jobs, Queue
from edged.errors import BadRequest, Unavailable
from edged.identity.words import JobId, Verdict
from services.jobs import policy
from services.jobs.credentials import Credentials
from services.jobs.model import Description, Job, State, Step
from services.jobs.registry import Registry

Draft = tuple[Job, Description]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, in lower case
_canonical = msgspec.json.Encoder(order="deterministic").encode


class Drafting:
    """Decides what a description would become; nothing is remembered here."""

    def __init__(
        self, config: Jobs, mappings: Collection[Mapping], registry: Registry, credentials: Credentials
    ) -> None:
        self._config = config
        self._mappings = mappings
        self._registry = registry
        self._credentials = credentials

    def draft(self, verdict: Verdict, asked: Description, drained: Collection[str]) -> list[Draft]:
        """The job, or the elements of an array. Raises BadRequest, NotFound, Denied, Unavailable."""
        policy.check_description(asked, self._config)
        queue = self._queue(verdict, asked)
        if queue.name in drained:
            raise Unavailable(f"queue {queue.name} is draining")
        for after in asked.after:
            self._registry.of(verdict, after.job)
        if asked.delegation and not self._credentials.of(verdict.principal, asked.delegation).ready:
            raise BadRequest("the delegation is not finished: its certificate was never sent")
        job = self._job(verdict, asked, queue)
        if asked.array is None:
            return [(job, asked)]
        own = msgspec.structs.replace(asked, array=None)
        return [(_element(job, asked, index), own) for index in range(asked.array.count)]

    def _queue(self, verdict: Verdict, asked: Description) -> Queue:
        caller = policy.Caller(verdict.vo, verdict.account, verdict.job_class)
        rule = policy.rule_of(self._mappings, verdict.account, verdict.job_class)
        return policy.choose_queue(self._config.queues, asked, caller, (rule.queue or "") if rule else "")

    def _job(self, verdict: Verdict, asked: Description, queue: Queue) -> Job:
        now = time.time()
        return Job(
            id=new_id(),
            owner=verdict.principal,
            account=verdict.account,
            vo=verdict.vo,
            job_class=verdict.job_class,
            queue=queue.name,
            batch=queue.batch or self._config.batch,
            name=asked.name,
            key=asked.key,
            digest=_digest(asked) if asked.key else "",
            created_at=now,
            changed_at=now,
            resources=asked.resources,
            stdout=asked.stdout,
            stderr=asked.stdout if asked.join else asked.stderr,
            after=asked.after,
            missing=asked.inputs,
            inputs=asked.inputs,
            outputs=asked.outputs,
            stdin=asked.stdin or "",
            delegation=asked.delegation,
            credential_in_job=asked.credential_in_job,
            reruns=asked.reruns,
            keep_s=asked.keep_s or self._config.keep_s,
            history=[Step(now, State.ACCEPTED)],
        )


def _digest(asked: Description) -> str:
    """What tells a repeat from another job under the same key."""
    return hashlib.sha256(_canonical(asked)).hexdigest()[:32]


def _element(first: Job, asked: Description, index: int) -> Job:
    """One element: the family's name is the id that the array itself would have had."""
    return msgspec.structs.replace(
        first,
        id=new_id(),
        array=first.id,
        array_index=index,
        at_once=asked.array.at_once if asked.array else 0,
        key=f"{asked.key}[{index}]" if asked.key else "",
        history=list(first.history),
    )


def new_id() -> JobId:
    """26 characters, sortable by time: 48 bits of milliseconds and 80 random bits, base 32 (Crockford)."""
    number = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10))
    return JobId("".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5)))
