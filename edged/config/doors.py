"""[jobs.arc] and [jobs.interlink]: the doors brokers use beside the native API."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from edged.config.base import (
    AbsolutePath,
    AccountNameField,
    ByteSize,
    Count,
    GivenPath,
    ListenAddress,
    Prefix,
    Seconds,
    Section,
    Word,
)


class Arc(Section):
    """The ARC REST door, below /arex."""

    subjects: dict[str, AccountNameField] = Field(
        default={},
        description="X.509 subject, e.g. /DC=org/DC=example/CN=alice → local account. Proxies count as their owner",
    )
    crls: Literal["if-present", "required", "off"] = Field(
        default="if-present",
        description="Revocation lists in tls.ca_directory; one that is out of date refuses its CA's certificates",
    )
    proxy_always: bool = Field(
        default=False, description="Give each job its delegated credential; False: only with ENV/PROXY"
    )
    gpu_environment: str = Field(
        default="ENV/GPU",
        description="Runtime environment that asks for GPUs; its options are kind and count",
    )
    node_access: tuple[Literal["inbound", "outbound"], ...] = Field(
        default=("outbound",), description="What the site's nodes offer to jobs that ask for network access"
    )

    @field_validator("subjects")
    @classmethod
    def _subjects(cls, value: dict[str, str]) -> dict[str, str]:
        for subject in value:
            if not subject.startswith("/") or "=" not in subject or not subject.isprintable():
                raise ValueError(f"not a subject: {subject!r}; write /DC=org/DC=example/CN=alice")
        return value


class PodRule(Section):
    """Which pods a virtual node may bring, and as which account they run. The first that fits decides."""

    callers: tuple[AccountNameField, ...] = Field(
        default=(), description="Accounts the virtual node's token maps to; empty: any"
    )
    namespaces: tuple[str, ...] = Field(default=("*",), description="Namespaces, with shell wildcards")
    annotations: dict[str, str] = Field(default={}, description="Annotations the pod must have")
    account: AccountNameField | None = Field(
        default=None, description="Local account of such pods; None: the token's own"
    )
    pre_exec: bool = Field(
        default=False, description="Run the shell text of pre-exec annotations on the node"
    )


class Flavor(Section):
    """A named size of pods, for the annotation slurm-job.vk.io/flavor; the pod's own limits go before it."""

    name: Word
    queue: Word | None = None
    cpus: Count | None = None
    memory: ByteSize = 0
    gpus: int = Field(default=0, ge=0, le=64)
    gpu_kind: str = ""
    walltime_s: int = Field(default=0, ge=0)


class Plugin(Section):
    """The plugin form, behind a stock interLink API server on this machine."""

    listen: tuple[ListenAddress, ...] = Field(description="A unix socket, or loopback")
    account: AccountNameField = Field(description="Account of everything that comes this way")
    secret_file: GivenPath | None = Field(
        default=None, description="The API server's secret, sent as basic authentication; loopback needs it"
    )
    users: tuple[str, ...] = Field(default=(), description="Local users that may use the unix socket")

    @model_validator(mode="after")
    def _guarded(self) -> Plugin:
        for address in self.listen:
            if not address.startswith("/") and self.secret_file is None:
                raise ValueError(f"{address}: any local user can connect; name a secret_file")
            if not address.startswith(("/", "127.", "[::1]")):
                raise ValueError(f"{address}: not on loopback; let virtual kubelets call edged itself")
            if address.startswith("/") and not self.users and self.secret_file is None:
                raise ValueError(f"{address}: name the users that may connect, or a secret_file")
        return self


class Runtime(Section):
    """How containers are run on the nodes."""

    kind: Literal["apptainer", "podman", "none"] = Field(
        default="apptainer",
        description="none: the command runs on the node itself, its image is not looked at",
    )
    program: str = Field(default="", description="e.g. /opt/apptainer/bin/apptainer; empty: found in PATH")
    arguments: tuple[str, ...] = Field(
        default=(), description="Before the runtime's own command, e.g. --runtime=crun"
    )
    run_arguments: tuple[str, ...] = Field(default=(), description="After it, e.g. --cleanenv")
    images: tuple[str, ...] = Field(
        default=(), description="Allowed beginnings of images: docker.io/library/, /cvmfs/unpacked.cern.ch/"
    )
    image_prefix: str = Field(default="docker.io/library/", description="For images without a registry")
    image_cache: AbsolutePath | None = Field(
        default=None,
        description="Files that go before registries, e.g. docker.io/library/alpine+3.20.sif (podman: .tar)",
    )
    pull: bool = Field(default=True, description="Nodes may fetch images from registries")
    options: tuple[str, ...] = Field(
        default=(
            "--nv",
            "--rocm",
            "--no-home",
            "--cleanenv",
            "--contain",
            "--containall",
            "--writable-tmpfs",
        ),
        description="Options pods may ask for by annotation",
    )
    gpu_arguments: tuple[str, ...] | None = Field(
        default=None, description="For pods with GPUs, e.g. --nv; None: what the runtime usually needs"
    )
    scratch: AbsolutePath = Field(
        default=Path("/tmp"),  # noqa: S108 - on the node; a directory of the job's own is made there
        description="Node-local place for what the runtime unpacks; removed at the pod's end",
    )


class InterLink(Section):
    """The interLink door: what virtual kubelets call, and the plugin behind a stock API server."""

    listen: tuple[ListenAddress, ...] = Field(
        default=(), description="Listeners of its own; empty: on the listener of [jobs]"
    )
    client_ca_file: GivenPath | None = Field(
        default=None, description="Mutual TLS on listeners of its own: CA of the clients' certificates"
    )
    subjects: dict[str, AccountNameField] = Field(
        default={}, description="Clients without a token: certificate subject, e.g. CN=vk,O=example → account"
    )
    plugin: Plugin | None = None
    runtime: Runtime = Runtime()
    rules: tuple[PodRule, ...] = Field(
        default=(), alias="rule", description="None: every namespace, as the token's own account"
    )
    flavors: tuple[Flavor, ...] = Field(default=(), alias="flavor")
    gpus: dict[str, str] = Field(
        default={"nvidia.com/gpu": ""},
        description="Kubernetes resource → GPU kind of the queues (empty: any). Others are refused",
    )
    default_cpus: Count = 1
    default_memory: ByteSize = Field(default=2 << 30, description="For pods that name none")
    host_paths: tuple[Prefix, ...] = Field(
        default=(), description="Directories of the nodes that pods may mount, with all below them"
    )
    flags: tuple[Word, ...] = Field(
        default=("time", "cpus-per-task", "mem", "nodes", "ntasks", "ntasks-per-node", "gres", "gpus",
                 "gpus-per-node", "partition", "exclusive", "job-name"),
        description="sbatch options pods may give by annotation; edged translates them itself",
    )  # fmt: skip
    mpi_program: str = "mpiexec"
    mpi_flags: tuple[str, ...] = Field(
        default=("--bind-to", "--map-by", "--mca", "-mca", "--oversubscribe", "-ppn", "-x"),
        description="Options pods may give to mpiexec",
    )
    restart_always: Literal["once", "honour"] = Field(
        default="once",
        description="Pods have restartPolicy Always unless they say otherwise; jobs should end",
    )
    max_restarts: int = Field(
        default=5, ge=0, description="Of one container, by restartPolicy OnFailure or Always"
    )
    restart_s: Seconds = Field(
        default=10.0, description="Before the first restart; doubles each time, to 300 s"
    )
    node_python: str = Field(default="/usr/bin/python3", description="Python of the nodes, 3.6 or newer")
    max_pod: ByteSize = Field(default=32 << 20, description="Largest body of /create")
    max_pods: Count = Field(default=1000, description="What the virtual node says it can hold")
    refresh_s: Seconds = Field(
        default=2.0, description="How often states of several containers are read, at best"
    )
