"""GPU utilisation as Slurm measures it: gres/gpuutil of each step.

Slurm gathers it with AutoDetect=nvml (or rsmi) and AccountingStorageTRES=gres/gpuutil: percent of one GPU,
added over the GPUs and tasks of a step. Where it is not gathered, the word is missing from the usage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from services.jobs.batch.protocol import BatchJob
from services.jobs.batch.slurm.accounting import tres

FIELDS = ("JobIDRaw", "Submit", "ElapsedRaw", "TRESUsageInTot")
WORD = "gres/gpuutil"

Key = tuple[str, float]  # id and submission: an id may come back for another job


def argv(ids: Iterable[str]) -> list[str]:
    """Pure. The same rows as the final facts."""
    return ["sacct", "-n", "-P", "-a", "-D", f"--jobs={','.join(ids)}", f"--format={','.join(FIELDS)}"]


def wanted(jobs: Iterable[BatchJob]) -> list[str]:
    """Ids of ended jobs that were given GPUs."""
    return sorted({job.ref.id for job in jobs if job.state.final and _has_gpus(job)})


def _has_gpus(job: BatchJob) -> bool:
    return any(word.startswith("gres/gpu") for word in job.tres)


def read(output: str) -> dict[Key, float]:
    """Job → seconds of one GPU at work, over all its steps; jobs of which nothing was measured are missing."""
    found: defaultdict[Key, float] = defaultdict(float)
    job: Key | None = None
    for line in output.splitlines():
        values = line.split("|")
        if len(values) != len(FIELDS):
            continue
        id_, submitted, elapsed, usage = values
        if "." not in id_:
            job = (id_, float(submitted)) if submitted.isdigit() else None
        percent = tres(usage).get(WORD, "")
        if job is not None and id_.partition(".")[0] == job[0] and percent.isdigit() and elapsed.isdigit():
            found[job] += int(percent) / 100 * int(elapsed)
    return dict(found)


def told(job: BatchJob, busy: Mapping[Key, float]) -> BatchJob:
    """The job with what was measured of its GPUs."""
    measured = busy.get((job.ref.id, job.ref.submitted_at))
    return job if measured is None else msgspec.structs.replace(job, gpu_s=measured)
