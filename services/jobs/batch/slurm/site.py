"""What Slurm tells of itself: configuration, partitions and GPUs, remaining allocation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

import msgspec

from edged.accounts.api import BatchVerb
from edged.errors import BadRequest
from edged.identity.words import Action
from services.jobs.batch.protocol import Allocation, GpuState, PartitionState
from services.jobs.batch.slurm.accounting import tres
from services.jobs.batch.slurm.clients import listing

if TYPE_CHECKING:
    from edged.accounts.clients import Workplace


class Cluster(msgspec.Struct, frozen=True):
    """What stays the same for as long as slurmctld runs."""

    name: str
    version: str
    accounting: bool
    private_jobs: bool  # PrivateData=jobs: an account sees only its own
    message_timeout_s: int


class About(BatchVerb, frozen=True, kw_only=True):
    """The cluster's name and the settings that matter here."""

    action: ClassVar[Action] = Action.JOB_POLL
    deadline_s: float

    def perform(self, where: Workplace) -> Cluster:
        return self.parse(listing(where, self.argv(), self.deadline_s))

    def argv(self) -> list[str]:
        return ["scontrol", "show", "config"]

    def parse(self, output: str) -> Cluster:
        pairs = (line.partition("=") for line in output.splitlines())
        said = {key.strip(): value.strip() for key, equal, value in pairs if equal}
        timeout = re.match(r"\d+", said.get("MessageTimeout", ""))
        return Cluster(
            name=said.get("ClusterName", ""),
            version=said.get("SLURM_VERSION", ""),
            accounting=said.get("AccountingStorageType", "").endswith("slurmdbd"),
            private_jobs="jobs" in said.get("PrivateData", "").split(","),
            message_timeout_s=int(timeout[0]) if timeout else 10,
        )


_COLUMNS = (
    ("PartitionName", 64), ("Available", 12), ("Time", 24), ("StateLong", 24), ("CPUsState", 48),
    ("Gres", 256), ("GresUsed", 256),
)  # fmt: skip
_TAKES_WORK = re.compile(r"(idle|mixed|allocated|completing|planned)[~#+\-]?")  # not '*': does not answer


class Partitions(BatchVerb, frozen=True, kw_only=True):
    """One line a node and partition, in fixed columns."""

    action: ClassVar[Action] = Action.JOB_POLL
    deadline_s: float

    def perform(self, where: Workplace) -> list[PartitionState]:
        return self.parse(listing(where, self.argv(), self.deadline_s))

    def argv(self) -> list[str]:
        return ["sinfo", "-h", "-N", "-O", ",".join(f"{name}:{width}" for name, width in _COLUMNS)]

    def parse(self, output: str) -> list[PartitionState]:
        rows = [_columns(line) for line in output.splitlines()]
        names = dict.fromkeys(row["PartitionName"] for row in rows)
        return [_partition(name, [row for row in rows if row["PartitionName"] == name]) for name in names]


def _columns(line: str) -> dict[str, str]:
    row, start = {}, 0
    for name, width in _COLUMNS:
        row[name] = line[start : start + width].strip()
        start += width
    return row


def _partition(name: str, rows: list[dict[str, str]]) -> PartitionState:
    usable = [row for row in rows if _TAKES_WORK.fullmatch(row["StateLong"])]
    total: dict[str, int] = {}
    free: dict[str, int] = {}
    for row in rows:
        for gres, count in gpus(row["Gres"]).items():
            total[gres] = total.get(gres, 0) + count
    for row in usable:
        used = gpus(row["GresUsed"])
        for gres, count in gpus(row["Gres"]).items():
            free[gres] = free.get(gres, 0) + max(0, count - used.get(gres, 0))
    return PartitionState(
        name=name,
        up=rows[0]["Available"] == "up",
        nodes=len(rows),
        nodes_usable=len(usable),
        cpus=sum(_cpus(row)[3] for row in rows),
        cpus_free=sum(_cpus(row)[1] for row in usable),
        gpus=tuple(GpuState(gres, count, free.get(gres, 0)) for gres, count in sorted(total.items())),
        max_walltime_s=limit(rows[0]["Time"]),
    )


def _cpus(row: dict[str, str]) -> list[int]:
    """allocated, idle, other, total."""
    parts = row["CPUsState"].split("/")
    return [int(part) if part.isdigit() else 0 for part in parts] if len(parts) == 4 else [0] * 4


def gpus(text: str) -> dict[str, int]:
    """``gpu:h200:4(S:0-1),gpu:2`` → {"gpu:h200": 4, "gpu": 2}; other GRES are left out."""
    found: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        kind, _, count = item.rpartition(":")
        if (kind == "gpu" or kind.startswith("gpu:")) and count.isdigit():
            found[kind] = found.get(kind, 0) + int(count)
    return found


def limit(text: str) -> int | None:
    """``2-00:00:00``, ``30:00``, ``infinite`` in seconds; None for no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


_NODE_ADDRESS = re.compile(r"(?:^|\s)NodeAddr=([0-9A-Za-z.:_-]+)")
_NODE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*", re.ASCII)


class NodeAddresses(BatchVerb, frozen=True, kw_only=True):
    """By which address slurmctld reaches each node: a name of Slurm's need not be one of the DNS."""

    action: ClassVar[Action] = Action.JOB_POLL
    nodes: tuple[str, ...]
    deadline_s: float

    def perform(self, where: Workplace) -> list[str]:
        return self.parse(listing(where, self.argv(), self.deadline_s)) if self.nodes else []

    def argv(self) -> list[str]:
        """Raises BadRequest for what is no node's name."""
        if not all(_NODE_NAME.fullmatch(node) for node in self.nodes):
            raise BadRequest("not the name of a node")
        return ["scontrol", "show", "node", "-o", ",".join(self.nodes)]

    def parse(self, output: str) -> list[str]:
        return [match[1] for line in output.splitlines() if (match := _NODE_ADDRESS.search(line))]


class Allocations(BatchVerb, frozen=True, kw_only=True):
    """What the account's Slurm accounts may still use, where the site set GrpTRESMins."""

    action: ClassVar[Action] = Action.JOB_POLL
    deadline_s: float

    def perform(self, where: Workplace) -> list[Allocation]:
        return self.parse(listing(where, self.argv(), self.deadline_s))

    def argv(self) -> list[str]:
        return ["sshare", "-n", "-P", "-o", "Account,User,GrpTRESMins,GrpTRESRaw"]

    def parse(self, output: str) -> list[Allocation]:
        found: list[Allocation] = []
        for line in output.splitlines():
            account, _, rest = line.partition("|")
            user, limits, used = (*rest.split("|"), "", "")[:3]
            if user or not limits:
                continue
            spent = tres(used)
            found.extend(
                Allocation(
                    account=account.strip(),
                    tres=kind,
                    limit_min=int(text),
                    used_min=int(spent.get(kind) or 0),
                )
                for kind, text in tres(limits).items()
                if text.isdigit()
            )
        return found
