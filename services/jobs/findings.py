"""For ``edged doctor``: Slurm's clients and daemons, the queues' partitions, the session directory."""

from __future__ import annotations

import asyncio
from pathlib import Path

from edged import programs
from edged.config import Config
from edged.config.jobs import Jobs
from edged.doctor import Finding
from edged.errors import Unavailable

SLURM, SESSIONS = "slurm", "sessions"
CLIENTS = ("sbatch", "squeue", "scancel", "sacct", "sinfo", "scontrol")
INSTALL = "install Slurm's client package of the cluster's version, or set jobs.slurm_bin"


async def findings(config: Config) -> list[Finding]:
    """Nothing without [jobs]."""
    if config.jobs is None:
        return []
    found: list[Finding] = []
    if _used(config.jobs) - _elsewhere(config.jobs):
        found.append(await _sessions(config.jobs.sessions))
    if "slurm" in _used(config.jobs):
        found += await _slurm(config.jobs)
    return found


def _used(jobs: Jobs) -> set[str]:
    """The batch systems of all queues."""
    return {queue.batch or jobs.batch for queue in jobs.queues} or {jobs.batch}


def _elsewhere(jobs: Jobs) -> set[str]:
    """Clusters whose session directories are not mounted here."""
    return {one.name for one in jobs.clusters if one.kind == "ssh" or getattr(one, "sessions_by", None)}


async def _sessions(place: Path) -> Finding:
    advice = (
        "make it, seen by the compute nodes, with one directory per account (see services/jobs/README.md)"
    )
    try:
        said = await programs.ask(["stat", "-c", "%F", place])
    except Unavailable as error:
        return Finding(
            SESSIONS, False, f"{place}: {error.message}", "look at the file system's server and mount"
        )
    good = said.code == 0 and said.out.strip() == "directory"
    return Finding(SESSIONS, good, f"{place}: {said.out.strip() or said.complaint}", advice)


async def _slurm(jobs: Jobs) -> list[Finding]:
    missing = [name for name in CLIENTS if not (jobs.slurm_bin / name).exists()]
    if missing:
        return [Finding(SLURM, False, f"no {', '.join(missing)} in {jobs.slurm_bin}", INSTALL)]
    return list(await asyncio.gather(_controller(jobs), _partitions(jobs), _accounting(jobs)))


def _environment(jobs: Jobs) -> dict[str, str]:
    return {"SLURM_CONF": str(jobs.slurm_conf)} if jobs.slurm_conf is not None else {}


async def _controller(jobs: Jobs) -> Finding:
    advice = "look at slurmctld, munge (same key, same time) and slurm.conf on this host; jobs wait meanwhile"
    try:
        said = await programs.ask([jobs.slurm_bin / "scontrol", "ping"], environment=_environment(jobs))
    except Unavailable as error:
        return Finding(SLURM, False, error.message, advice)
    text = " ".join(said.out.split()) or said.complaint
    return Finding(SLURM, said.code == 0, text, advice)


async def _partitions(jobs: Jobs) -> Finding:
    wanted = {
        queue.partition or queue.name for queue in jobs.queues if (queue.batch or jobs.batch) == "slurm"
    }
    try:
        said = await programs.ask(
            [jobs.slurm_bin / "sinfo", "--noheader", "--format=%R"], environment=_environment(jobs)
        )
    except Unavailable as error:
        return Finding(SLURM, False, error.message, "as for slurmctld")
    return judged(wanted, set(said.out.split()))


def judged(wanted: set[str], there: set[str]) -> Finding:
    """Whether every queue has its partition."""
    if lacking := sorted(wanted - there):
        text = f"no partition {', '.join(lacking)}; there are {', '.join(sorted(there)) or 'none'}"
        return Finding(SLURM, False, text, "correct jobs.queue.partition, or let this host see the partition")
    return Finding(SLURM, True, f"partitions of all queues: {', '.join(sorted(wanted)) or 'none wanted'}")


async def _accounting(jobs: Jobs) -> Finding:
    argv: list[str | Path] = [
        jobs.slurm_bin / "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        "--starttime=now",
        "--format=JobIDRaw",
    ]
    try:
        said = await programs.ask(argv, environment=_environment(jobs))
    except Unavailable as error:
        return Finding(SLURM, False, error.message, "look at slurmdbd; ended jobs get no exit code meanwhile")
    if said.code != 0:
        return Finding(
            SLURM,
            False,
            f"sacct: {said.complaint}",
            "accounting is needed to tell how vanished jobs ended: AccountingStorageType in slurm.conf",
        )
    return Finding(SLURM, True, "accounting answers")
