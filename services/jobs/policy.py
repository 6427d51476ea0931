"""Which queue, and how much: pure decisions on a description, the caller and what is already there."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from edged.config.identity import Mapping
from edged.config.jobs import GpuKind, Jobs, Limit, Queue
from edged.errors import BadRequest, Busy, Denied, NotFound
from edged.identity.words import JobClass
from services.jobs.batch.protocol import GpuRequest, Submission
from services.jobs.model import Description, Job, Resources, State

MAX_NAMES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as policy is concerned."""

    vo: str
    account: str
    job_class: JobClass


def choose_queue(
    queues: Sequence[Queue], description: Description, caller: Caller, default: str = ""
) -> Queue:
    """The queue of a job: the named one, the mapping's, or the best that fits.

    Raises NotFound for an unknown or foreign queue, BadRequest when nothing can hold the job.
    """
    mine = [queue for queue in queues if _open_to(queue, caller)]
    if not mine:
        raise Denied(f"no queue is open to {caller.vo} ({caller.job_class.value})")
    wanted = description.queue or default
    if wanted:
        named = next((queue for queue in mine if queue.name == wanted), None)
        if named is None:
            raise NotFound(f"no queue named {wanted!r}; there are {', '.join(q.name for q in mine)}")
        why = misfit(named, description.resources)
        if not why:
            return named
        if description.queue:
            raise BadRequest(f"queue {wanted}: {why}")
    reasons: list[str] = []
    for queue in sorted(mine, key=lambda queue: (bool(queue.gpus), -queue.priority)):
        why = misfit(queue, description.resources)
        if not why:
            return queue
        reasons.append(f"{queue.name}: {why}")
    raise BadRequest("no queue fits: " + "; ".join(reasons))


def _open_to(queue: Queue, caller: Caller) -> bool:
    return (not queue.vos or caller.vo in queue.vos) and (
        not queue.classes or caller.job_class in queue.classes
    )


def misfit(queue: Queue, need: Resources) -> str:
    """Why a queue cannot hold this, or nothing."""
    per_node = -(-need.tasks // need.nodes) * need.cpus_per_task
    if need.nodes > queue.max_nodes:
        return f"at most {queue.max_nodes} nodes"
    if need.tasks < need.nodes:
        return "fewer tasks than nodes"
    if per_node > queue.max_cpus_per_node:
        return f"at most {queue.max_cpus_per_node} CPUs a node"
    if need.memory > queue.max_memory_per_node:
        return f"at most {queue.max_memory_per_node} bytes of memory a node"
    if need.walltime_s > queue.max_walltime_s:
        return f"at most {queue.max_walltime_s} s walltime"
    if need.mpi and need.mpi not in queue.mpi:
        return f"MPI is one of {', '.join(queue.mpi)}"
    unknown = [gres for gres in need.gres if gres.split(":")[0] not in {g.split(":")[0] for g in queue.gres}]
    if unknown:
        return f"has no {unknown[0]}"
    return _gpu_misfit(queue, need)


def _gpu_misfit(queue: Queue, need: Resources) -> str:
    if need.gpus is None:
        return ""
    kind = gpu_kind(queue, need.gpus.kind)
    if kind is None:
        kinds = ", ".join(g.kind for g in queue.gpus)
        return f"has {kinds}" if kinds else "has no GPUs"
    return "" if need.gpus.count <= kind.per_node else f"at most {kind.per_node} {kind.kind} a node"


def gpu_kind(queue: Queue, kind: str) -> GpuKind | None:
    """The queue's GPU of that name; the first one for no name."""
    return next((gpu for gpu in queue.gpus if kind in ("", gpu.kind)), None)


def submission(job: Job, queue: Queue, rule: Mapping | None) -> Submission:
    """What the batch system is told: the queue's settings, over them the mapping's."""
    need = job.resources
    gpu = gpu_kind(queue, need.gpus.kind) if need.gpus else None
    return Submission(
        job=job.id,
        run=job.run,
        partition=queue.partition or queue.name,
        slurm_account=(rule.slurm_account if rule else "") or queue.slurm_account,
        qos=(rule.qos if rule else "") or queue.qos,
        reservation=(rule.reservation if rule else "") or queue.reservation,
        constraint=(rule.constraint if rule else "") or queue.constraint,
        nodes=need.nodes,
        tasks=need.tasks,
        cpus_per_task=need.cpus_per_task,
        memory_per_node=need.memory,
        walltime_s=need.walltime_s or queue.default_walltime_s,
        exclusive=need.exclusive,
        gpus=GpuRequest(gpu.gres or f"gpu:{gpu.kind}", need.gpus.count) if gpu and need.gpus else None,
        gres=need.gres,
        mpi="" if need.mpi == "none" else need.mpi,
    )


_WAITING = frozenset({State.ACCEPTED, State.PREPARING, State.SUBMITTING, State.QUEUED, State.HELD})


def phase(state: State) -> str:
    """``queued``, ``running`` or nothing: how limits count a state."""
    if state in _WAITING:
        return "queued"
    return "" if state.final else "running"


@dataclass(slots=True)
class Load:
    """How many jobs are where, kept up to date by the engine, and the limits on it."""

    limits: Sequence[Limit]
    max_jobs: int
    held: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    recent: dict[int, deque[float]] = field(default_factory=dict)
    coming: Counter[Caller] = field(default_factory=Counter)  # admitted, not yet in the journal

    def moved(self, job: Job, before: State | None, after: State | None) -> None:
        """A job changed its state (None: it did not exist, or is gone)."""
        old, new = phase(before) if before else "", phase(after) if after else ""
        if old == new:
            return
        if old:
            self.held[job.vo, job.job_class.value, job.account, old] -= 1
        if new:
            self.held[job.vo, job.job_class.value, job.account, new] += 1

    def admit(self, caller: Caller, count: int, total: int, now: float) -> None:
        """Raise Busy when ``count`` more jobs would break a limit; remembers them otherwise."""
        if total + count > self.max_jobs:
            raise Busy(f"the site holds {self.max_jobs} jobs; clean finished ones", retry_after_s=60)
        rules = [(index, rule) for index, rule in enumerate(self.limits) if _concerns(rule, caller)]
        for index, rule in rules:
            self._check(index, rule, count, now)
        for index, rule in rules:
            if rule.per_minute is not None:
                self.recent.setdefault(index, deque()).extend([now] * count)

    @contextmanager
    def admitted(self, caller: Caller, count: int, total: int, now: float) -> Iterator[None]:
        """``admit``, and count them as queued while entered: until the caller has made them jobs, or failed to."""
        self.admit(caller, count, total + self.coming.total(), now)
        self.coming[caller] += count
        try:
            yield
        finally:
            self.coming[caller] -= count
            if not self.coming[caller]:
                del self.coming[caller]

    def _check(self, index: int, rule: Limit, count: int, now: float) -> None:
        who = (
            " ".join(filter(None, (rule.vo, rule.job_class and rule.job_class.value, rule.account))) or "all"
        )
        if rule.queued is not None and self.count(rule, "queued") + count > rule.queued:
            raise Busy(f"limit of {rule.queued} queued jobs for {who}", retry_after_s=30)
        if rule.running is not None and self.count(rule, "running") >= rule.running:
            raise Busy(f"limit of {rule.running} running jobs for {who}", retry_after_s=60)
        if rule.per_minute is not None:
            recent = self.recent.setdefault(index, deque())
            while recent and recent[0] <= now - 60:
                recent.popleft()
            if len(recent) + count > rule.per_minute:
                wait = recent[0] + 60 - now if recent else 60.0
                raise Busy(f"limit of {rule.per_minute} submissions a minute for {who}", retry_after_s=wait)

    def count(self, rule: Limit, where: str) -> int:
        """Jobs the rule counts in ``queued`` or ``running``."""
        coming = sum(n for who, n in self.coming.items() if _concerns(rule, who)) if where == "queued" else 0
        return coming + sum(
            number
            for (vo, job_class, account, part), number in self.held.items()
            if part == where
            and rule.vo in (None, vo)
            and rule.account in (None, account)
            and (rule.job_class is None or rule.job_class.value == job_class)
        )


def _concerns(rule: Limit, caller: Caller) -> bool:
    return (
        rule.vo in (None, caller.vo)
        and rule.account in (None, caller.account)
        and rule.job_class in (None, caller.job_class)
    )


def check_description(description: Description, config: Jobs) -> None:
    """What field types cannot say. Raises BadRequest."""
    if bool(description.executable) == bool(description.script):
        raise BadRequest("give exactly one of executable and script")
    if description.script and not description.script.startswith("#!"):
        raise BadRequest("script: its first line must name an interpreter (#!/bin/sh)")
    named = (*description.inputs, *description.programs, *(description.outputs or ()))
    for name in (description.stdin, description.stdout, description.stderr, *named):
        if name is not None:
            check_name(name)
    if sum(map(len, named)) > MAX_NAMES:  # they stay in memory for as long as the job is known
        raise BadRequest(
            f"the names of inputs, outputs and programs are over {MAX_NAMES} characters together"
        )
    for word in _words(description):
        if not word.isprintable():  # a pattern's $ also matches before a final newline
            raise BadRequest(f"a control character in {word!r}")
    for key, value in description.environment.items():
        if "\0" in value:
            raise BadRequest(f"environment.{key}: a NUL byte")
    if any("\0" in argument for argument in description.arguments):
        raise BadRequest("arguments: a NUL byte")
    size = sum(len(k) + len(v) for k, v in description.environment.items()) + sum(
        map(len, description.arguments)
    )
    if size > 1 << 20:
        raise BadRequest("environment and arguments are over 1 MiB together")
    known = {software_name(item.name, item.version) for item in config.software}
    missing = set(description.software) - known
    if missing:
        raise BadRequest(f"software: the site does not offer {min(missing)!r}")


def _words(description: Description) -> Iterable[str]:
    """Every string of a description that is a name and not content."""
    need = description.resources
    yield from (description.name, description.queue, description.executable, description.key, need.mpi)
    yield from (*description.environment, *description.software, *need.gres)
    if need.gpus is not None:
        yield need.gpus.kind


def software_name(name: str, version: str) -> str:
    """``gcc/13``: how jobs name a runtime environment."""
    return f"{name}/{version}" if version else name


def check_name(name: str) -> None:
    """Refuse names that leave the session directory or touch edged's own files. Raises BadRequest."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise BadRequest(f"not a plain relative file name: {name!r}")
    if parts[0].startswith(".edged"):
        raise BadRequest("names starting with .edged are the site's own")
    if any(len(part.encode()) > 255 for part in parts):
        raise BadRequest("a file name is over 255 bytes")


def rule_of(mappings: Iterable[Mapping], account: str, job_class: JobClass) -> Mapping | None:
    """The first mapping of this account and class: it carries the batch settings."""
    return next((m for m in mappings if m.account == account and m.job_class == job_class), None)
