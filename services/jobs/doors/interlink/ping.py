"""The answer to a ping: what the virtual node can hold, and whether it takes pods. Pure.

Kubernetes subtracts its own pods from what is said here. So GPUs are those free now and those that
this node's own pods hold: what others use is not offered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from edged.config.doors import InterLink
from edged.config.jobs import Queue
from services.jobs.batch.protocol import PartitionState, SiteState
from services.jobs.model import Job, State

DRAINING = "edged/draining"
ON_NODES = (State.RUNNING, State.SUSPENDED)  # a FINISHING one's GPUs may be free by now


class Accelerator(msgspec.Struct, frozen=True, rename="camel"):
    resource_type: str
    available: str


class NodeResources(msgspec.Struct, frozen=True, omit_defaults=True):
    """Quantities, as strings. What is empty stays as the virtual node has it."""

    cpu: str = ""
    memory: str = ""
    pods: str = ""
    accelerators: list[Accelerator] = []


class Taint(msgspec.Struct, frozen=True):
    key: str
    value: str
    effect: str


class PingResponse(msgspec.Struct, frozen=True):
    status: str
    resources: NodeResources
    taints: list[Taint]


def answer(
    config: InterLink,
    queues: Iterable[Queue],
    drained: frozenset[str],
    states: Mapping[str, SiteState],
    own: Iterable[Job],
) -> PingResponse:
    """From the queues open to the caller, what the batch systems say of them, and the caller's jobs."""
    usable = [queue for queue in queues if not drained & {"*", queue.name}]
    found = {
        (name, part.name): (queue, part)
        for name, state in states.items()
        for queue in usable
        for part in state.partitions
        if part.up and queue.batch in (None, name) and _serves(part, queue, state)
    }
    held = [job for job in own if job.state in ON_NODES]
    return PingResponse(
        "ok",
        NodeResources(
            cpu=str(sum(part.cpus for _, part in found.values())) if found else "",
            memory=_memory(found.values()),
            pods=str(config.max_pods),
            accelerators=[
                Accelerator(resource, str(_gpus(resource, kind, found.values(), held)))
                for resource, kind in config.gpus.items()
            ],
        ),
        [] if usable else [Taint(DRAINING, "true", "NoSchedule")],
    )


def _serves(part: PartitionState, queue: Queue, state: SiteState) -> bool:
    """By name; a batch system with a single partition has no names to speak of."""
    return part.name == (queue.partition or queue.name) or len(state.partitions) == 1


def _memory(places: Iterable[tuple[Queue, PartitionState]]) -> str:
    """Batch systems' partitions do not tell memory: only said where the queue has a limit per node."""
    known = [(q, p) for q, p in places if "max_memory_per_node" in q.model_fields_set]
    return str(sum(q.max_memory_per_node * p.nodes_usable for q, p in known)) if known else ""


def _gpus(
    resource: str, kind: str, places: Iterable[tuple[Queue, PartitionState]], held: Iterable[Job]
) -> int:
    """GPUs of a kind (empty: of any): free ones, and those of the caller's running jobs."""
    known = [
        gpu
        for queue, part in places
        for gpu in part.gpus
        if gpu.gres in {k.gres or f"gpu:{k.kind}" for k in queue.gpus if kind in ("", k.kind)}
    ]
    free = sum(gpu.free for gpu in known)
    mine = sum(
        job.resources.gpus.count * job.resources.nodes
        for job in held
        if job.resources.gpus and kind in ("", job.resources.gpus.kind)
    )
    return min(sum(gpu.total for gpu in known), free + mine)  # the two were not counted at one moment
