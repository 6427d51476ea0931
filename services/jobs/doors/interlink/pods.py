"""The parts of Kubernetes' v1.Pod and of interLink's bodies that matter here, as they come on the wire.

Go marshals nil slices and maps as ``null``, so everything may be null. Unknown fields are Kubernetes'
own business. Sources: Kubernetes API v1; interLink 0.3 to 0.6.2 (pkg/interlink/types.go).
"""

from __future__ import annotations

from typing import Any

import msgspec

Words = dict[str, str] | None


class Wire(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Base: camelCase on the wire, unknown fields skipped."""


class Metadata(Wire, frozen=True):
    """Name, namespace, uid and what hangs on it."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    labels: Words = None
    annotations: Words = None


class KeyRef(Wire, frozen=True):
    """A key of a ConfigMap or Secret."""

    name: str = ""
    key: str = ""
    optional: bool | None = None


class FieldRef(Wire, frozen=True):
    """A field of the pod."""

    field_path: str = ""


class ResourceFieldRef(Wire, frozen=True):
    """A limit or request of a container."""

    container_name: str = ""
    resource: str = ""
    divisor: str | None = None


class EnvSource(Wire, frozen=True):
    """Where a variable's value comes from."""

    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None


class EnvVar(Wire, frozen=True):
    """One variable."""

    name: str
    value: str | None = None
    value_from: EnvSource | None = None


class ObjectRef(Wire, frozen=True):
    """A ConfigMap or Secret by name."""

    name: str = ""
    optional: bool | None = None


class EnvFrom(Wire, frozen=True):
    """All keys of an object as variables."""

    prefix: str | None = None
    config_map_ref: ObjectRef | None = None
    secret_ref: ObjectRef | None = None


class Mount(Wire, frozen=True):
    """Where a container sees a volume."""

    name: str
    mount_path: str
    sub_path: str | None = None
    sub_path_expr: str | None = None
    read_only: bool | None = None


class Needs(Wire, frozen=True):
    """Limits and requests: Kubernetes quantities by resource name (numbers are legal there, too)."""

    limits: dict[str, str | int | float] | None = None
    requests: dict[str, str | int | float] | None = None


class Container(Wire, frozen=True):
    """One container."""

    name: str
    image: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    working_dir: str | None = None
    env: list[EnvVar] | None = None
    env_from: list[EnvFrom] | None = None
    resources: Needs | None = None
    volume_mounts: list[Mount] | None = None
    volume_devices: list[Any] | None = None
    restart_policy: str | None = None


class Item(Wire, frozen=True):
    """A key and the file it becomes; downward API items have a field instead of a key."""

    path: str
    key: str = ""
    mode: int | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None


class FilesSource(Wire, frozen=True):
    """ConfigMap (``name``), Secret (``secretName``) or downward API as a volume."""

    name: str = ""
    secret_name: str = ""
    items: list[Item] | None = None
    default_mode: int | None = None
    optional: bool | None = None


class HostPath(Wire, frozen=True):
    """A directory or file of the node."""

    path: str


class Projected(Wire, frozen=True):
    """What it has in it is put together by the virtual kubelet."""

    default_mode: int | None = None
    sources: list[Any] | None = None


class Volume(Wire, frozen=True):
    """One volume; ``kinds`` of other sources are refused by name."""

    name: str
    config_map: FilesSource | None = None
    secret: FilesSource | None = None
    downward_api: FilesSource | None = msgspec.field(default=None, name="downwardAPI")
    projected: Projected | None = None
    empty_dir: dict[str, Any] | None = None
    host_path: HostPath | None = None
    persistent_volume_claim: Any = None
    ephemeral: Any = None
    csi: Any = None
    nfs: Any = None


class PodSpec(Wire, frozen=True):
    """What is to run."""

    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    volumes: list[Volume] | None = None
    restart_policy: str | None = None
    active_deadline_seconds: int | None = None
    termination_grace_period_seconds: int | None = None
    hostname: str | None = None
    node_name: str | None = None
    service_account_name: str | None = None


class Pod(Wire, frozen=True):
    """v1.Pod."""

    metadata: Metadata
    spec: PodSpec = PodSpec()

    @property
    def annotations(self) -> dict[str, str]:
        return self.metadata.annotations or {}

    @property
    def init_containers(self) -> list[Container]:
        return self.spec.init_containers or []

    @property
    def containers(self) -> list[Container]:
        return self.spec.containers or []

    @property
    def name(self) -> str:
        """``namespace/name``, for people."""
        return f"{self.metadata.namespace}/{self.metadata.name}"


class KeptObject(Wire, frozen=True):
    """v1.ConfigMap or v1.Secret. ``data`` of a Secret and ``binary_data`` are base64."""

    metadata: Metadata
    data: dict[str, str] | None = None
    binary_data: Words = None
    string_data: Words = None


class PluginContainer(Wire, frozen=True):
    """What the API server has put together for one container."""

    name: str = ""
    config_maps: list[KeptObject] | None = None
    projectedvolumemaps: list[KeptObject] | None = None
    secrets: list[KeptObject] | None = None


class Create(Wire, frozen=True):
    """The body of /create: a virtual kubelet's (``PodCreateRequests``), or an API server's
    (``RetrievedPodData``), which has ``container``. Mind the spelling of the projected volumes.
    """

    pod: Pod
    configmaps: list[KeptObject] | None = None
    secrets: list[KeptObject] | None = None
    projectedvolumesmaps: list[KeptObject] | None = None
    container: list[PluginContainer] | None = None


class NameOnly(Wire, frozen=True):
    """A container's name."""

    name: str = ""
    image: str | None = None


class SpecOfNames(Wire, frozen=True):
    """The names of the containers."""

    containers: list[NameOnly] | None = None
    init_containers: list[NameOnly] | None = None
    restart_policy: str | None = None


class AskedPod(Wire, frozen=True):
    """A pod as /status asks for it: hundreds a second, so only the names are read."""

    metadata: Metadata
    spec: SpecOfNames = SpecOfNames()


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What of a log is wanted. 0 and year 1 mean not set; ``LimitBytes`` is the Python SDK's word."""

    tail: int = msgspec.field(default=0, name="Tail")
    bytes: int = msgspec.field(default=0, name="Bytes")
    limit_bytes: int = msgspec.field(default=0, name="LimitBytes")
    timestamps: bool = msgspec.field(default=False, name="Timestamps")
    follow: bool = msgspec.field(default=False, name="Follow")
    previous: bool = msgspec.field(default=False, name="Previous")
    since_seconds: int = msgspec.field(default=0, name="SinceSeconds")
    since_time: str | None = msgspec.field(default=None, name="SinceTime")


class LogRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /getLogs (``LogStruct``)."""

    namespace: str = msgspec.field(default="", name="Namespace")
    uid: str = msgspec.field(default="", name="PodUID")
    pod: str = msgspec.field(default="", name="PodName")
    container: str = msgspec.field(default="", name="ContainerName")
    options: LogOptions = msgspec.field(default=LogOptions(), name="Opts")
