"""The configuration files of a throw-away Slurm: pure text from a layout. Tried with Slurm 22.05."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

CLUSTER = "testbed"


@dataclass(frozen=True, slots=True)
class Layout:
    """What the testbed pretends to be, and where it lies.

    ``accounting``: slurmdbd with a private MariaDB. ``cgroup``: memory enforced by cgroups, so that OOM is
    seen as OUT_OF_MEMORY; otherwise the accounting plugin kills what is over its memory. ``database``: the
    password of slurmdbd's database user. ``rest``: a slurmrestd too, and JWTs are taken.
    """

    root: Path
    host: str
    ports: tuple[int, ...]
    database: str
    cpu_nodes: int = 2
    gpu_nodes: int = 1
    gpus: int = 4
    cpus: int = 16
    memory_mb: int = 8000
    max_jobs: int = 10000
    min_job_age_s: int = 300
    slurmd_timeout_s: int = 15
    kill_wait_s: int = 5
    message_timeout_s: int = 10
    accounting: bool = True
    cgroup: bool = False
    rest: bool = False
    extra: tuple[str, ...] = field(default=())

    @property
    def nodes(self) -> tuple[str, ...]:
        cpu = tuple(f"c{n + 1}" for n in range(self.cpu_nodes))
        return cpu + tuple(f"g{n + 1}" for n in range(self.gpu_nodes))

    @property
    def slurm_conf(self) -> Path:
        return self.root / "etc/slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.root / "run/munge/munge.socket"

    @property
    def database_socket(self) -> Path:
        return self.root / "run/mariadb/mariadb.sock"

    @property
    def jwt_key(self) -> Path:
        return self.root / "etc/jwt_hs256.key"

    @property
    def rest_socket(self) -> Path:
        return self.root / "run/rest/rest.sock"

    @property
    def controller_port(self) -> int:
        return self.ports[0]

    @property
    def database_port(self) -> int:
        return self.ports[1]


PORTS_BESIDE_NODES = 2


def slurm_conf(layout: Layout) -> str:
    """slurm.conf. An empty value is a parse error for every client, so absent settings are left out."""
    root = layout.root
    lines = [
        f"ClusterName={CLUSTER}",
        f"SlurmctldHost={layout.host}(127.0.0.1)",
        "SlurmUser=slurm",
        f"SlurmctldPort={layout.controller_port}",
        # keeps every listener on loopback
        "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",
        "AuthType=auth/munge",
        f"AuthInfo=socket={layout.munge_socket}",
        "CredType=cred/munge",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool/%n",
        f"SlurmctldPidFile={root}/run/slurm/slurmctld.pid",
        f"SlurmdPidFile={root}/run/slurmd-%n.pid",
        f"SlurmctldLogFile={root}/log/slurm/slurmctld.log",
        f"SlurmdLogFile={root}/log/slurm/slurmd-%n.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        "MailProg=/bin/true",
        "ReturnToService=2",
        f"SlurmdTimeout={layout.slurmd_timeout_s}",
        "SlurmctldTimeout=10",
        f"MessageTimeout={layout.message_timeout_s}",
        f"KillWait={layout.kill_wait_s}",
        f"MinJobAge={layout.min_job_age_s}",
        f"MaxJobCount={layout.max_jobs}",
        "SchedulerType=sched/backfill",
        # batch_sched_delay: a test does not wait 3 s for its job to be looked at
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=20000,"
        "default_queue_depth=200,bf_max_job_test=500,max_rpc_cnt=100",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU_Memory",
        "DefMemPerCPU=100",
        # lets a node claim more CPUs than this machine has
        "SlurmdParameters=config_overrides",
        "GresTypes=gpu",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=1",
        "MpiDefault=none",
        *_tokens(layout),
        *_limits(layout),
        *_accounting(layout),
        *layout.extra,
        *_nodes(layout),
    ]
    return "\n".join(lines) + "\n"


def _tokens(layout: Layout) -> list[str]:
    if not layout.rest:
        return []
    return ["AuthAltTypes=auth/jwt", f"AuthAltParameters=jwt_key={layout.jwt_key}"]


def _limits(layout: Layout) -> list[str]:
    if layout.cgroup:
        return ["ProctrackType=proctrack/cgroup", "TaskPlugin=task/cgroup"]
    return ["ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "JobAcctGatherParams=OverMemoryKill"]


def _accounting(layout: Layout) -> list[str]:
    if not layout.accounting:
        return ["AccountingStorageType=accounting_storage/none", "JobCompType=jobcomp/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=localhost",
        f"AccountingStoragePort={layout.database_port}",
        # AuthInfo alone does not move the munge socket for accounting
        f"AccountingStoragePass={layout.munge_socket}",
        "AccountingStorageTRES=gres/gpu,gres/gpu:h200",
        "AccountingStorageEnforce=associations,limits,qos",
        "JobCompType=jobcomp/none",
    ]


def _nodes(layout: Layout) -> list[str]:
    lines = []
    for node, port in zip(layout.nodes, layout.ports[PORTS_BESIDE_NODES:], strict=True):
        gres = f" Gres=gpu:h200:{layout.gpus}" if node.startswith("g") else ""
        lines.append(
            f"NodeName={node} NodeHostname={layout.host} NodeAddr=127.0.0.1 Port={port} CPUs={layout.cpus} "
            f"RealMemory={layout.memory_mb} State=UNKNOWN{gres}"
        )
    lines.append(
        f"PartitionName=cpu Nodes=c[1-{layout.cpu_nodes}] Default=YES MaxTime=2-0 DefaultTime=10 State=UP"
    )
    if layout.gpu_nodes:
        lines.append(f"PartitionName=gpu Nodes=g[1-{layout.gpu_nodes}] MaxTime=1-0 DefaultTime=10 State=UP")
    return lines


def gres_conf(layout: Layout) -> str:
    """gres.conf. The device files are links to /dev/null: with plain files a job sees no GPU numbers."""
    if not layout.gpu_nodes:
        return "AutoDetect=off\n"
    devices = f"{layout.root}/dev/gpu[0-{layout.gpus - 1}]"
    return f"AutoDetect=off\nNodeName=g[1-{layout.gpu_nodes}] Name=gpu Type=h200 File={devices}\n"


def cgroup_conf() -> str:
    return "CgroupAutomount=no\nConstrainDevices=no\nConstrainRAMSpace=yes\nConstrainSwapSpace=no\n"


def slurmdbd_conf(layout: Layout) -> str:
    root = layout.root
    return f"""AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
DbdHost=localhost
DbdPort={layout.database_port}
SlurmUser=slurm
DebugLevel=info
LogFile={root}/log/slurm/slurmdbd.log
PidFile={root}/run/slurm/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass={layout.database}
StorageLoc=slurm_acct_db
CommunicationParameters=NoInAddrAny
""" + "".join(f"{line}\n" for line in _tokens(layout))
