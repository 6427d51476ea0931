"""What the site offers, as GLUE 2 (GFD.147): the fields ARC's clients and the pilot factories read. Pure.

One share for each queue the caller's VO may use, and one for the queue and the VO (``cpu_cms``), which is
where DIRAC looks. GPUs are GLUE 2.1's accelerator environments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edged import __version__
from edged.config import Config
from edged.config.jobs import Jobs, Queue
from services.jobs.batch.protocol import PartitionState, SiteState
from services.jobs.doors.arc.activity import moment
from services.jobs.model import Job, State

NAMESPACE = "http://schemas.ogf.org/glue/2009/03/spec_2.0_r1"
VALIDITY_S = 300
_COUNTED = {
    State.RUNNING: "RunningJobs",
    State.SUSPENDED: "SuspendedJobs",
    State.FINISHING: "RunningJobs",
    State.QUEUED: "WaitingJobs",
    State.HELD: "WaitingJobs",
    State.PREPARING: "StagingJobs",
    State.ACCEPTED: "PreLRMSWaitingJobs",
    State.SUBMITTING: "PreLRMSWaitingJobs",
}
Count = Counter[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Offer:
    """Everything the document is made of. ``counts``: jobs by queue, VO and what GLUE counts them as."""

    config: Config
    jobs: Jobs
    vo: str
    base: str
    now: float
    counts: Count
    sites: Mapping[str, SiteState]
    drained: frozenset[str]


def count(jobs: Sequence[Job]) -> Count:
    """Jobs by queue, VO and kind."""
    return Counter((job.queue, job.vo, _COUNTED[job.state]) for job in jobs if not job.state.final)


def document(offer: Offer) -> dict[str, Any]:
    """``{"Domains": ...}``: the whole of it for one VO's eyes."""
    queues = [queue for queue in offer.jobs.queues if not queue.vos or offer.vo in queue.vos]
    service_id = f"urn:ogf:ComputingService:{_host(offer)}:arex"
    service = {
        "CreationTime": moment(offer.now),
        "Validity": str(VALIDITY_S),
        "ID": service_id,
        "Name": offer.config.site.name,
        "Capability": ["executionmanagement.jobexecution", "executionmanagement.jobmanager"],
        "Type": "org.nordugrid.arex",
        "QualityLevel": "production",
        "StatusInfo": [offer.base],
        "Complexity": f"endpoint=1,share={2 * len(queues)},resource={len(queues)}",
        **_totals(offer, queues),
        "ComputingEndpoint": [_endpoint(offer, service_id)],
        "ComputingShare": [share for queue in queues for share in _shares(offer, queue, service_id)],
        "ComputingManager": _manager(offer, queues, service_id),
    }
    domain = {
        "ID": f"urn:ad:{offer.config.site.name}",
        "Name": offer.config.site.name,
        "OtherInfo": [f"EDGED_VERSION={__version__}"],
        "Distributed": "false",
        "Services": {"ComputingService": service},
    }
    return {"Domains": {"AdminDomain": domain}}


def _host(offer: Offer) -> str:
    return offer.config.site.host or offer.base.partition("://")[2].partition("/")[0].rpartition(":")[0]


def _jobs(offer: Offer, queue: str = "", vo: str = "") -> dict[str, str]:
    found = dict.fromkeys(_COUNTED.values(), 0)
    for (of_queue, of_vo, kind), number in offer.counts.items():
        if queue in ("", of_queue) and vo in ("", of_vo):
            found[kind] += number
    return {"TotalJobs": str(sum(found.values())), **{kind: str(number) for kind, number in found.items()}}


def _totals(offer: Offer, queues: Sequence[Queue]) -> dict[str, str]:
    sums: Counter[str] = Counter()
    for queue in queues:
        sums.update({kind: int(number) for kind, number in _jobs(offer, queue.name).items()})
    return {kind: str(sums[kind]) for kind in ("TotalJobs", *dict.fromkeys(_COUNTED.values()))}


def _endpoint(offer: Offer, service_id: str) -> dict[str, Any]:
    draining = "*" in offer.drained
    return {
        "CreationTime": moment(offer.now),
        "Validity": str(VALIDITY_S),
        "ID": f"urn:ogf:ComputingEndpoint:{_host(offer)}:org.nordugrid.arcrest",
        "Name": "ARC REST",
        "URL": offer.base.rpartition("/rest")[0],
        "Capability": ["executionmanagement.jobcreation", "executionmanagement.jobmanagement"],
        "Technology": "webservice",
        "InterfaceName": "org.nordugrid.arcrest",
        "InterfaceVersion": ["1.1", "1.0"],
        "SupportedProfile": ["WS-I 1.0"],
        "Implementor": "edged",
        "ImplementationName": "edged",
        "ImplementationVersion": __version__,
        "QualityLevel": "production",
        "HealthState": "ok",
        "ServingState": "draining" if draining else "production",
        "JobDescription": ["emies:adl", "nordugrid:xrsl"],
        "Staging": "staginginout",
        **_jobs(offer, vo=offer.vo),
        "Associations": {"ComputingShareID": [], "ServiceID": service_id},
    }


def _shares(offer: Offer, queue: Queue, service_id: str) -> list[dict[str, Any]]:
    """The queue itself, and its share of the VO: told from the first by its MappingPolicy."""
    manager = _manager_id(offer)
    partition = _partition(offer, queue)
    common = {
        "CreationTime": moment(offer.now),
        "Validity": str(VALIDITY_S),
        "MappingQueue": queue.name,
        "MaxWallTime": str(queue.max_walltime_s),
        "DefaultWallTime": str(queue.default_walltime_s),
        "MaxMultiSlotWallTime": str(queue.max_walltime_s),
        "MaxSlotsPerJob": str(queue.max_cpus_per_node * queue.max_nodes),
        "MaxMainMemory": str(queue.max_memory_per_node >> 20),
        "SchedulingPolicy": "fairshare",
        "ServingState": "draining" if offer.drained & {"*", queue.name} else "production",
        "FreeSlots": str(partition.cpus_free if partition else 0),
        "UsedSlots": str(partition.cpus - partition.cpus_free if partition else 0),
        **_accelerators(queue, partition),
    }
    associations = {
        "ComputingEndpointID": [f"urn:ogf:ComputingEndpoint:{_host(offer)}:org.nordugrid.arcrest"],
        "ExecutionEnvironmentID": [_environment_id(offer, queue)],
        "ComputingManagerID": manager,
        "ServiceID": service_id,
    }
    vo = offer.vo.lower()
    prefix = f"urn:ogf:ComputingShare:{_host(offer)}"
    policy = {
        "ID": f"urn:ogf:MappingPolicy:{_host(offer)}:{queue.name}_{vo}",
        "Scheme": "basic",
        "Rule": [f"vo:{offer.vo}"],
    }
    return [
        {
            "ID": f"{prefix}:{queue.name}",
            "Name": queue.name,
            **common,
            **_jobs(offer, queue.name),
            "Associations": associations,
        },
        {
            "ID": f"{prefix}:{queue.name}_{vo}",
            "Name": f"{queue.name}_{vo}",
            **common,
            **_jobs(offer, queue.name, offer.vo),
            "MappingPolicy": policy,
            "Associations": associations,
        },
    ]


def _accelerators(queue: Queue, partition: PartitionState | None) -> dict[str, str]:
    if not queue.gpus:
        return {}
    total = sum(gpu.total for gpu in partition.gpus) if partition else 0
    free = sum(gpu.free for gpu in partition.gpus) if partition else 0
    return {
        "MaxAcceleratorSlotsPerJob": str(max(gpu.per_node for gpu in queue.gpus) * queue.max_nodes),
        "FreeAcceleratorSlots": str(free),
        "UsedAcceleratorSlots": str(total - free),
    }


def _partition(offer: Offer, queue: Queue) -> PartitionState | None:
    site = offer.sites.get(queue.batch or offer.jobs.batch)
    wanted = queue.partition or queue.name
    return next((one for one in site.partitions if one.name == wanted), None) if site else None


def _manager_id(offer: Offer) -> str:
    return f"urn:ogf:ComputingManager:{_host(offer)}:{offer.jobs.batch}"


def _environment_id(offer: Offer, queue: Queue) -> str:
    return f"urn:ogf:ExecutionEnvironment:{_host(offer)}:{queue.name}"


def _manager(offer: Offer, queues: Sequence[Queue], service_id: str) -> dict[str, Any]:
    site = offer.sites.get(offer.jobs.batch)
    partitions = [one for queue in queues if (one := _partition(offer, queue))]
    unique = {one.name: one for one in partitions}.values()
    slots, free = sum(one.cpus for one in unique), sum(one.cpus_free for one in unique)
    return {
        "CreationTime": moment(offer.now),
        "Validity": str(VALIDITY_S),
        "ID": _manager_id(offer),
        "Name": site.cluster if site else offer.jobs.batch,
        "ProductName": offer.jobs.batch,
        "ProductVersion": site.version if site else "",
        "Reservation": "false",
        "BulkSubmission": "true",
        "TotalSlots": str(slots),
        "SlotsUsedByLocalJobs": "0",
        "SlotsUsedByGridJobs": str(slots - free),
        "Homogeneous": "false",
        "WorkingAreaShared": "true",
        "ExecutionEnvironments": {
            "ExecutionEnvironment": [_environment(offer, queue) for queue in queues],
        },
        "ApplicationEnvironments": {"ApplicationEnvironment": _applications(offer)},
        "AcceleratorEnvironments": {
            "AcceleratorEnvironment": [one for queue in queues for one in _gpus(offer, queue)],
        },
        "Associations": {"ServiceID": service_id},
    }


def _environment(offer: Offer, queue: Queue) -> dict[str, Any]:
    partition = _partition(offer, queue)
    nodes = partition.nodes if partition else 0
    cpus = partition.cpus if partition else 0
    return {
        "ID": _environment_id(offer, queue),
        "Name": queue.name,
        "Platform": "amd64",
        "TotalInstances": str(nodes),
        "UnavailableInstances": str(nodes - partition.nodes_usable if partition else 0),
        "LogicalCPUs": str(cpus // nodes if nodes else 0),
        "MainMemorySize": str(queue.max_memory_per_node >> 20),
        "OSFamily": "linux",
        "ConnectivityIn": _true("inbound" in (offer.jobs.arc.node_access if offer.jobs.arc else ())),
        "ConnectivityOut": _true("outbound" in (offer.jobs.arc.node_access if offer.jobs.arc else ())),
        "OtherInfo": [f"GPU={gpu.kind}:{gpu.per_node}" for gpu in queue.gpus],
        "Associations": {"ComputingShareID": [f"urn:ogf:ComputingShare:{_host(offer)}:{queue.name}"]},
    }


def _gpus(offer: Offer, queue: Queue) -> list[dict[str, Any]]:
    """GLUE 2.1's AcceleratorEnvironment."""
    partition = _partition(offer, queue)
    known = {gpu.gres: gpu for gpu in partition.gpus} if partition else {}
    found = []
    for gpu in queue.gpus:
        state = known.get(gpu.gres or f"gpu:{gpu.kind}")
        found.append(
            {
                "ID": f"urn:ogf:AcceleratorEnvironment:{_host(offer)}:{queue.name}:{gpu.kind}",
                "Name": gpu.kind,
                "Type": "GPU",
                "Model": gpu.kind,
                "PhysicalAccelerators": str(gpu.per_node),
                "TotalInstances": str(state.total if state else 0),
                "UsedInstances": str(state.total - state.free if state else 0),
                "Associations": {"ExecutionEnvironmentID": [_environment_id(offer, queue)]},
            }
        )
    return found


def _applications(offer: Offer) -> list[dict[str, str]]:
    own = [("ENV/PROXY", "")]
    if any(queue.gpus for queue in offer.jobs.queues) and offer.jobs.arc:
        own.append((offer.jobs.arc.gpu_environment, ""))
    offered = [*((item.name, item.version) for item in offer.jobs.software), *own]
    found = []
    for name, version in offered:
        application = {
            "ID": f"urn:ogf:ApplicationEnvironment:{_host(offer)}:{name}-{version}".rstrip("-"),
            "AppName": name,
            "State": "installednotverified",
        }
        if version:
            application["AppVersion"] = version
        found.append(application)
    return found


def _true(value: bool) -> str:
    return "true" if value else "false"
