"""How much of a node a pod needs: from limits, flavours and flags to the engine's resources. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edged.config.doors import Flavor, InterLink
from edged.errors import BadRequest, NotFound
from services.jobs.doors.interlink.pods import Container, Pod
from services.jobs.doors.interlink.quantities import quantity, whole
from services.jobs.doors.interlink.wishes import Wishes
from services.jobs.model import Gpus, Resources

_TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?")
_MEMORY = re.compile(r"(\d{1,12})([KMGT]?)B?")
_GRES = re.compile(r"gpu(?::([A-Za-z][A-Za-z0-9_.-]*))?(?::(\d{1,2}))?")
_IGNORED = ("ephemeral-storage", "storage", "pods")


@dataclass(frozen=True, slots=True)
class Size:
    """What the engine is asked for."""

    resources: Resources
    queue: str


def size(pod: Pod, wishes: Wishes, config: InterLink) -> Size:
    """Limits go before the flavour, flags before both. Raises BadRequest and NotFound."""
    flavor = _flavor(wishes.flavor, config)
    asked = totals(pod)
    flags = wishes.flags
    gpus = _gpus_of_flags(flags) or _gpus(asked, config) or _gpus_of_flavor(flavor)
    cpus = whole(asked.get("cpu", 0)) or (flavor.cpus if flavor and flavor.cpus else config.default_cpus)
    memory = whole(asked.get("memory", 0)) or (flavor.memory if flavor else 0) or config.default_memory
    deadline_s = pod.spec.active_deadline_seconds or (flavor.walltime_s if flavor else 0)
    nodes = _count(flags, "nodes", 1)
    return Size(
        Resources(
            nodes=nodes,
            tasks=_count(flags, "ntasks", _count(flags, "ntasks-per-node", 1) * nodes),
            cpus_per_task=_count(flags, "cpus-per-task", cpus),
            memory=memory_of(flags["mem"]) if "mem" in flags else memory,
            walltime_s=seconds_of(flags["time"]) if "time" in flags else max(0, deadline_s),
            exclusive="exclusive" in flags,
            gpus=gpus,
        ),
        flags.get("partition") or (flavor.queue or "" if flavor else ""),
    )


def _flavor(name: str, config: InterLink) -> Flavor | None:
    if not name:
        return None
    found = next((flavor for flavor in config.flavors if flavor.name == name), None)
    if found is None:
        raise NotFound(f"no flavor named {name[:64]!r}")
    return found


def totals(pod: Pod) -> dict[str, int | str]:
    """Kubernetes' effective request: containers side by side add up, init containers one by one do not."""
    side_by_side: dict[str, float] = {}
    sidecars = [c for c in pod.init_containers if c.restart_policy == "Always"]
    for container in (*pod.containers, *sidecars):
        for name, amount in _needs(container):
            side_by_side[name] = side_by_side.get(name, 0) + amount
    for container in pod.init_containers:
        for name, amount in _needs(container):
            side_by_side[name] = max(side_by_side.get(name, 0), amount)
    return {name: f"{amount:.3f}" for name, amount in side_by_side.items()}


def _needs(container: Container) -> Iterable[tuple[str, float]]:
    needs = container.resources
    if needs is None:
        return
    for name, value in {**(needs.requests or {}), **(needs.limits or {})}.items():
        amount = float(quantity(value))
        if amount < 0:
            raise BadRequest(f"container {container.name}: {name} below zero")
        yield name, amount


def _gpus(asked: Mapping[str, int | str], config: InterLink) -> Gpus | None:
    """GPUs by Kubernetes' names. Anything the site does not know is refused, never left out."""
    found: Gpus | None = None
    for name, amount in asked.items():
        if name in ("cpu", "memory", *_IGNORED) or whole(amount) == 0:
            continue
        if name not in config.gpus:
            raise BadRequest(f"this site has no {name[:128]}")
        if found is not None:
            raise BadRequest("GPUs of two kinds in one pod")
        found = _checked(config.gpus[name], whole(amount))
    return found


def _checked(kind: str, count: int) -> Gpus:
    if not 1 <= count <= 64:
        raise BadRequest(f"{count} GPUs on one node")
    return Gpus(count=count, kind=kind)


def _gpus_of_flavor(flavor: Flavor | None) -> Gpus | None:
    return Gpus(count=flavor.gpus, kind=flavor.gpu_kind) if flavor and flavor.gpus else None


def _gpus_of_flags(flags: Mapping[str, str]) -> Gpus | None:
    """``--gres=gpu:h200:2``, ``--gpus-per-node=h200:2``, ``--gpus=2``."""
    said = flags.get("gres") or flags.get("gpus-per-node") or flags.get("gpus")
    if not said:
        return None
    found = _GRES.fullmatch(said if said.startswith("gpu") else f"gpu:{said}")
    if found is None:
        raise BadRequest(f"not a number of GPUs: {said[:64]!r}")
    return _checked(found[1] or "", int(found[2] or 1))


def _count(flags: Mapping[str, str], name: str, default: int) -> int:
    said = flags.get(name)
    if said is None:
        return default
    if not said.isdecimal() or not said.isascii() or len(said) > 6 or int(said) < 1:
        raise BadRequest(f"--{name}: not a number: {said[:32]!r}")
    return int(said)


def memory_of(text: str) -> int:
    """sbatch's ``--mem``, in bytes; megabytes without a letter."""
    found = _MEMORY.fullmatch(text)
    if found is None:
        raise BadRequest(f"--mem: not a size: {text[:32]!r}")
    return int(int(found[1]) * 1024 ** " KMGT".index(found[2] or "M"))


def seconds_of(text: str) -> int:
    """sbatch's ``--time``: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise BadRequest(f"--time: not a time: {text[:32]!r}")
    days, *rest = (None if part is None else int(part) for part in found.groups())
    a, b, c = (value or 0 for value in rest)
    if days is not None:
        return days * 86400 + a * 3600 + b * 60 + c
    if rest[1] is None:
        return a * 60
    return a * 60 + b if rest[2] is None else a * 3600 + b * 60 + c
