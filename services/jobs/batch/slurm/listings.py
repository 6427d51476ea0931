"""squeue and sacct: the sweep, the look-up by name, and the final facts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import msgspec

from edged.accounts.api import BatchVerb
from edged.errors import Unavailable
from edged.identity.words import Action
from services.jobs.batch.protocol import BatchJob, Cause, unique_name
from services.jobs.batch.slurm import accounting, gpus, queue
from services.jobs.batch.slurm.clients import asked, listing
from services.jobs.batch.slurm.submit import client_lock

if TYPE_CHECKING:
    from edged.accounts.clients import Workplace

EARLIEST = 1_000_000_000  # sacct refuses times near 1970


class Swept(msgspec.Struct, frozen=True):
    """squeue's lines as they came, and when it was asked."""

    taken_at: float
    lines: bytes


class Sweep(BatchVerb, frozen=True, kw_only=True):
    """All jobs in slurmctld's memory, ended ones of the last MinJobAge included: one request for 10,000."""

    action: ClassVar[Action] = Action.JOB_POLL

    accounts: tuple[str, ...] = ()
    deadline_s: float

    def perform(self, where: Workplace) -> Swept:
        taken_at = time.time()
        return Swept(taken_at, asked(where, self.argv(where.account), self.deadline_s))

    def argv(self, own: str) -> list[str]:
        """Pure. Text, because squeue --json costs 20 times as much and ignores every filter in 22.05.

        Always of named accounts: a job's name may hold a newline, and what follows it reads as a line of any
        other job. Nobody outside our accounts shall write such lines.
        """
        users = f"--user={','.join(self.accounts or (own,))}"
        return ["squeue", "-h", "-r", "-a", "-t", "all", users, "-o", queue.FORMAT]


class Find(BatchVerb, frozen=True, kw_only=True):
    """Everything Slurm knows under a job's unique name: the queue first, then accounting.

    In this order, because a job moves from the first to the second. A job that accounting shows as waiting
    or running and slurmctld does not have is one that slurmctld lost: it counts as not found.
    """

    action: ClassVar[Action] = Action.JOB_POLL

    job: str
    cluster: str
    since: float
    accounting: bool
    deadline_s: float

    def perform(self, where: Workplace) -> list[BatchJob]:
        """Raises Unavailable unless all answered, or while an sbatch of this job still lives."""
        if where.client_alive(client_lock(self.job)):
            raise Unavailable("an earlier sbatch of this job still runs")
        name = unique_name(self.job)
        lines = listing(where, self.live_argv(where.account), self.deadline_s).splitlines()
        found = [job for line in lines if (job := queue.parse(line, self.cluster)) and job.ref.name == name]
        if self.accounting:
            for argv in self.remembered_argv():
                rows = accounting.read(listing(where, argv, self.deadline_s))
                found.extend(row for row in rows if row.state.final)
        return list({job.ref.id: job for job in found if job.ref.name == name}.values())

    def live_argv(self, account: str) -> list[str]:
        """The account's own jobs only: anybody may give a job our name."""
        chosen = [f"--user={account}", f"--name={unique_name(self.job)}"]
        return ["squeue", "-h", "-r", "-a", "-t", "all", *chosen, "-o", queue.FORMAT]

    def remembered_argv(self) -> list[list[str]]:
        """By name, sacct lists only what became eligible in the window; what was cancelled while held
        appears only when asked for by state.
        """
        begin = f"--starttime=uts{max(int(self.since), EARLIEST)}"
        every = ["sacct", "-n", "-P", "-X", "-D", f"--name={unique_name(self.job)}", begin]
        fields = [f"--format={','.join(accounting.FIELDS)}"]
        return [[*every, *fields], [*every, "--endtime=now", "--state=CANCELLED", *fields]]


class Finals(BatchVerb, frozen=True, kw_only=True):
    """Accounting's facts of jobs by id. sacct goes on answering while slurmctld is down.

    sacct prints exit codes of 128 and more with 128 taken off (137 as 9, 128 as 0: PRINT_EXITCODE in its
    print.c, 22.05 to 25.05). For MinJobAge slurmctld still knows the true one, so it is asked about failures.
    """

    BATCH: ClassVar[int] = 1000
    action: ClassVar[Action] = Action.JOB_POLL

    ids: tuple[str, ...]
    deadline_s: float

    def perform(self, where: Workplace) -> list[BatchJob]:
        jobs = accounting.read(listing(where, self.argv(), self.deadline_s))
        if with_gpus := gpus.wanted(jobs):
            busy = gpus.read(listing(where, gpus.argv(with_gpus), self.deadline_s))
            jobs = [gpus.told(job, busy) for job in jobs]
        failed = sorted({job.ref.id for job in jobs if job.cause is Cause.EXIT})
        if not failed:
            return jobs
        try:
            codes = queue.exit_codes(listing(where, self.codes_argv(failed), self.deadline_s))
        except Unavailable:  # slurmctld is down, or has forgotten them all
            return jobs
        return [_corrected(job, codes) for job in jobs]

    def argv(self) -> list[str]:
        """Pure. With steps, which alone know the memory used; -D, because ids are given out again."""
        fields = f"--format={','.join(accounting.FIELDS)}"
        return ["sacct", "-n", "-P", "-a", "-D", f"--jobs={','.join(self.ids)}", fields]

    def codes_argv(self, ids: list[str]) -> list[str]:
        return ["squeue", "-h", "-a", "-t", "all", f"--jobs={','.join(ids)}", "-O", queue.EXIT_CODES]


def _corrected(job: BatchJob, codes: Mapping[tuple[str, str], int]) -> BatchJob:
    true = codes.get((job.ref.id, job.ref.name))
    if true is None or job.cause is not Cause.EXIT:
        return job
    return msgspec.structs.replace(job, exit_code=true)
