"""From a pod to what the node's runner reads and what the engine is asked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edged.config.doors import InterLink, Runtime
from edged.errors import BadRequest
from services.jobs.doors.interlink import images, sizes, wishes
from services.jobs.doors.interlink import volumes as volume_rules
from services.jobs.doors.interlink.contents import Contents
from services.jobs.doors.interlink.environment import environment, expanded
from services.jobs.doors.interlink.names import check_label
from services.jobs.doors.interlink.pods import Container, Pod
from services.jobs.doors.interlink.volumes import PlannedVolume
from services.jobs.doors.interlink.wishes import Wishes

MAX_CONTAINERS = 100
MAX_GRACE_S = 20  # batch systems kill some 30 s after their TERM
_GPU_ARGUMENTS = {
    ("apptainer", "nvidia.com/gpu"): ("--nv",),
    ("apptainer", "amd.com/gpu"): ("--rocm",),
    ("podman", "nvidia.com/gpu"): ("--device=nvidia.com/gpu=all",),
    ("podman", "amd.com/gpu"): ("--device=/dev/kfd", "--device=/dev/dri"),
}


class RuntimePlan(msgspec.Struct, frozen=True):
    """How containers are run; ``gpu`` are the arguments for a pod with GPUs."""

    kind: str
    program: str
    arguments: tuple[str, ...]
    run_arguments: tuple[str, ...]
    gpu: tuple[str, ...]
    pull: bool
    scratch: str


class ImagePlan(msgspec.Struct, frozen=True):
    """See ``images.Image``."""

    file: str
    reference: str
    cached: str


class MountPlan(msgspec.Struct, frozen=True):
    """A volume of the session, or ``host``, at ``path``."""

    volume: str
    host: str
    path: str
    sub_path: str
    read_only: bool


class ContainerPlan(msgspec.Struct, frozen=True):
    """One container. ``restart``: Never, OnFailure or Always; ``mpi``: its launcher, or nothing."""

    name: str
    image: ImagePlan
    command: list[str]
    args: list[str]
    env: dict[str, str]
    directory: str
    mounts: list[MountPlan]
    options: tuple[str, ...]
    mpi: list[str]
    restart: str


class FilePlan(msgspec.Struct, frozen=True):
    """A file of a volume: ``entry`` of the archive becomes ``path``."""

    path: str
    entry: str
    mode: int


class VolumePlan(msgspec.Struct, frozen=True):
    """A directory of the session."""

    name: str
    files: list[FilePlan]


class Plan(msgspec.Struct, frozen=True):
    """Everything the node's runner needs to know. Times in seconds."""

    runtime: RuntimePlan
    volumes: list[VolumePlan]
    init: list[ContainerPlan]
    containers: list[ContainerPlan]
    pre_exec: str
    grace_s: float
    restart_s: float
    max_restarts: int


class Planned(msgspec.Struct, frozen=True):
    """The plan, the files of the archive, and what the engine is asked for."""

    plan: Plan
    files: dict[str, bytes]
    size: sizes.Size


def plan(pod: Pod, contents: Contents, config: InterLink, *, pre_exec: bool = False) -> Planned:
    """The whole translation. Raises BadRequest, Denied and NotFound in words for the pod's owner."""
    check_names(pod)
    asked = wishes.read(pod, config, pre_exec=pre_exec)
    size = sizes.size(pod, asked, config)
    planned = volume_rules.volumes(pod, contents, config.host_paths)
    files: dict[str, bytes] = {}
    build = _Builder(pod, contents, config, asked, planned)
    return Planned(
        Plan(
            runtime=_runtime(pod, config.runtime, gpus=size.resources.gpus is not None),
            volumes=[_volume(volume, files) for volume in planned if not volume.host],
            init=[build.container(c, main=False) for c in pod.init_containers],
            containers=[build.container(c, main=True) for c in pod.containers],
            pre_exec=asked.pre_exec,
            grace_s=min(_or(pod.spec.termination_grace_period_seconds, 30), MAX_GRACE_S),
            restart_s=config.restart_s,
            max_restarts=config.max_restarts,
        ),
        files,
        size,
    )


def check_names(pod: Pod) -> None:
    """At least one container, not too many, each with a name of its own. Raises BadRequest."""
    names = [check_label(c.name, "container") for c in (*pod.init_containers, *pod.containers)]
    if not pod.containers:
        raise BadRequest("a pod without containers")
    if len(names) > MAX_CONTAINERS:
        raise BadRequest(f"{len(names)} containers in one pod; at most {MAX_CONTAINERS}")
    if len(set(names)) != len(names):
        raise BadRequest("two containers have one name")


def _runtime(pod: Pod, runtime: Runtime, *, gpus: bool) -> RuntimePlan:
    kinds = {name for c in pod.containers if c.resources for name in (c.resources.limits or {})}
    maker = "amd.com/gpu" if "amd.com/gpu" in kinds else "nvidia.com/gpu"
    told = runtime.gpu_arguments
    arguments = _GPU_ARGUMENTS.get((runtime.kind, maker), ()) if told is None else told
    return RuntimePlan(
        kind=runtime.kind,
        program=runtime.program,
        arguments=runtime.arguments,
        run_arguments=runtime.run_arguments,
        gpu=arguments if gpus else (),
        pull=runtime.pull,
        scratch=str(runtime.scratch),
    )


def _volume(volume: PlannedVolume, files: dict[str, bytes]) -> VolumePlan:
    found: list[FilePlan] = []
    for file in volume.files:
        entry = f"files/{len(files)}"
        files[entry] = file.content
        found.append(FilePlan(file.path, entry, file.mode))
    return VolumePlan(volume.name, found)


class _Builder:
    """Makes the containers of one pod."""

    def __init__(
        self,
        pod: Pod,
        contents: Contents,
        config: InterLink,
        wishes: Wishes,
        volumes: Sequence[PlannedVolume],
    ) -> None:
        self._pod = pod
        self._contents = contents
        self._config = config
        self._wishes = wishes
        self._volumes = volumes
        self._hosts = {volume.name: volume.host for volume in volumes}

    def container(self, container: Container, *, main: bool) -> ContainerPlan:
        variables = self._extra() | environment(self._pod, container, self._contents)
        image = images.resolve(container.image or "", self._wishes.image_root, self._config.runtime)
        return ContainerPlan(
            name=container.name,
            image=ImagePlan(image.file, image.reference, image.cached),
            command=_words(container, container.command, variables),
            args=_words(container, container.args, variables),
            env=variables,
            directory=_directory(container),
            mounts=self._mounts(container),
            options=self._wishes.options,
            mpi=[self._config.mpi_program, *self._wishes.mpi] if main and self._wishes.mpi else [],
            restart=self._restart(container, main=main),
        )

    def _extra(self) -> dict[str, str]:
        address = self._pod.annotations.get("interlink.eu/pod-ip")
        return {"POD_IP": address} if address else {}

    def _mounts(self, container: Container) -> list[MountPlan]:
        own = [
            MountPlan(m.volume, self._hosts[m.volume], m.path, m.sub_path, m.read_only)
            for m in volume_rules.mounts(container, self._volumes)
        ]
        return own + [MountPlan("", m.volume, m.path, "", m.read_only) for m in self._wishes.binds]

    def _restart(self, container: Container, *, main: bool) -> str:
        policy = self._pod.spec.restart_policy or "Always"
        if not main:
            if container.restart_policy == "Always":
                return "Always"
            return "Never" if policy == "Never" else "OnFailure"
        if policy == "Always" and self._config.restart_always == "once":
            return "Never"
        return policy if policy in ("Always", "OnFailure") else "Never"


def _words(container: Container, words: Sequence[str] | None, variables: dict[str, str]) -> list[str]:
    found = [expanded(word, variables) for word in words or ()]
    if any("\0" in word for word in found):
        raise BadRequest(f"container {container.name}: a NUL byte in its command")
    return found


def _directory(container: Container) -> str:
    path = container.working_dir or ""
    if path and (not path.startswith("/") or not path.isprintable()):
        raise BadRequest(f"container {container.name}: workingDir is not an absolute path")
    return path


def _or(value: int | None, default: int) -> int:
    return default if value is None else max(0, value)
