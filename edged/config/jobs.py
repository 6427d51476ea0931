"""[jobs], [[jobs.queue]], [[jobs.limit]]."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from edged.config.base import AbsolutePath, ByteSize, Count, GivenPath, Seconds, Section, Word
from edged.config.batch import Cluster
from edged.config.doors import Arc, InterLink
from edged.config.site import Front
from edged.identity.words import JobClass


class GpuKind(Section):
    """A GPU as jobs name it → the partition's GRES."""

    kind: Word = Field(description="Name in job descriptions, e.g. h200")
    gres: str = Field(default="", description="GRES name, e.g. gpu:h200; empty: gpu:<kind>")
    per_node: Count = 4


class Queue(Section):
    """A place for jobs, under the site's own name."""

    name: Word
    batch: Word | None = Field(default=None, description="Batch system of this queue; default: [jobs] batch")
    partition: str = Field(default="", description="Slurm partition; empty: the queue's name")
    slurm_account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    gpus: tuple[GpuKind, ...] = ()
    gres: tuple[str, ...] = Field(default=(), description="Other GRES jobs may ask for, e.g. fpga:u280")
    vos: tuple[Word, ...] = Field(default=(), description="Who may use it; empty: all VOs")
    classes: tuple[JobClass, ...] = ()
    max_nodes: Count = 1000
    max_cpus_per_node: Count = 1024
    max_memory_per_node: ByteSize = Field(default=4 << 40)
    max_walltime_s: Count = Field(default=7 * 86400)
    default_walltime_s: Count = 3600
    mpi: tuple[Word, ...] = Field(
        default=("pmix", "pmi2", "none"), description="Accepted `srun --mpi=` kinds"
    )
    priority: int = Field(
        default=0, description="Among fitting queues the highest is taken when none is named"
    )


class Limit(Section):
    """At most this much at once, for jobs matching all the given words."""

    vo: Word | None = None
    job_class: JobClass | None = Field(default=None, alias="class")
    account: str | None = None
    queued: Count | None = Field(default=None, description="Jobs not yet running")
    running: Count | None = None
    per_minute: Count | None = Field(default=None, description="Submissions accepted per minute")


class Software(Section):
    """A runtime environment the site offers."""

    name: str
    version: str = ""
    init: str = Field(default="", description="Shell line the batch script runs, e.g. module load gcc/13")


class GpuSampler(Section):
    """Beside each job with GPUs, on its node: how busy they are, through NVML."""

    library: str = Field(
        default="libnvidia-ml.so.1", description="NVML, by name or path on the nodes; empty: no sampling"
    )
    period_s: Seconds = Field(default=5.0, ge=0.1)
    python: str = Field(default="/usr/bin/python3", description="Python of the nodes, 3.6 or newer")


class Jobs(Front):
    """The job engine."""

    workers: Literal[1] = Field(default=1, description="There is one engine; it answers from its memory")
    batch: Word = Field(
        default="slurm", description="slurm, local, a [[jobs.cluster]], or a driver the site installed"
    )
    sessions: AbsolutePath = Field(
        default=Path("/var/lib/edged-sessions"),
        description="Session directories, seen by compute nodes; has one directory per account",
    )
    queues: tuple[Queue, ...] = Field(default=(), alias="queue")
    clusters: tuple[Cluster, ...] = Field(default=(), alias="cluster")
    limits_by: tuple[Limit, ...] = Field(default=(), alias="limit")
    software: tuple[Software, ...] = ()
    gpu_sampler: GpuSampler = GpuSampler()
    poll_s: Seconds = Field(default=3.0, description="Period of the squeue sweep")
    client_deadline_s: Seconds = Field(
        default=30.0, gt=11.0, description="Above Slurm's MessageTimeout of 10 s"
    )
    settle_s: Seconds = Field(
        default=15.0, description="How long an answer of 'no such job' must stand before it counts"
    )
    busy_s: Seconds = Field(
        default=7 * 86400.0, description="How long a job is offered to a batch system that says it is full"
    )
    stuck_s: Seconds = Field(
        default=86400.0, description="Queued for a reason that never ends: cancelled after this"
    )
    keep_s: Seconds = Field(default=14 * 86400.0, description="Outputs of ended jobs are kept this long")
    inputs_s: Seconds = Field(default=86400.0, description="How long uploads of inputs are awaited")
    max_jobs: Count = Field(default=100000, description="Jobs not yet cleaned")
    max_body: ByteSize = Field(default=8 << 20)
    max_input: ByteSize = Field(default=100 << 30, description="Largest input file of a job")
    bulk: Count = Field(default=1000, description="Jobs in one call")
    submit_parallel: Count = Field(default=4, description="Batch clients at once per account")
    proxy_environment: dict[str, str] = Field(
        default={}, description="Set in every job, e.g. OSG_SQUID_LOCATION"
    )
    slurm_conf: GivenPath | None = Field(default=None, description="SLURM_CONF for the clients")
    slurm_bin: AbsolutePath = Path("/usr/bin")
    arc: Arc | None = Field(default=None, description="The ARC REST door; None: it does not exist")
    interlink: InterLink | None = Field(
        default=None, description="The interLink door; None: it does not exist"
    )
