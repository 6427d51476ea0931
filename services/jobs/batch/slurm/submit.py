"""sbatch: every decision on argv, nothing from anybody's environment or script."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar

import msgspec

from edged.accounts.api import BatchVerb
from edged.identity.words import Action
from services.jobs.batch import script
from services.jobs.batch.protocol import Submission, session_directory
from services.jobs.batch.slurm.clients import SUBMISSION
from services.jobs.batch.slurm.refusals import Verdict, clean, judge

if TYPE_CHECKING:
    from edged.accounts.clients import Finished, Workplace

_PARSABLE = re.compile(r"(\d+)(?:;(\S+))?")  # ID, or ID;CLUSTER in a multi-cluster site


class SubmitAnswer(msgspec.Struct, frozen=True):
    """What sbatch's end proves. ``id`` only when ``verdict`` is None, that is: accepted."""

    verdict: Verdict | None
    id: str = ""
    words: str = ""


class Submit(BatchVerb, frozen=True, kw_only=True):
    """Submit the launcher (``script.launcher``) on standard input: no file of the job is read by sbatch."""

    action: ClassVar[Action] = Action.JOB_SUBMIT

    job: str
    submission: Submission
    deadline_s: float

    def perform(self, where: Workplace) -> SubmitAnswer:
        """Raises Conflict while an earlier sbatch of this job still lives, Unavailable when none ran."""
        session = session_directory(PurePosixPath(where.sessions), self.job)
        with where.lock(client_lock(self.job)) as lock:
            done = where.run_client(
                self.argv(session),
                env=SUBMISSION,
                stdin=script.launcher(self.job, session),
                deadline_s=self.deadline_s,
                lock_fd=lock,
            )
        return self.parse(done)

    def argv(self, session: PurePosixPath) -> list[str]:
        """Pure. Values are joined to their option by ``=``, so none can become another option."""
        asked = self.submission
        return [
            "sbatch",
            "--parsable",
            f"--job-name={asked.name}",
            "--no-requeue",
            "--kill-on-invalid-dep=yes",
            "--export=NONE",
            f"--chdir={session}",
            "--input=/dev/null",
            f"--output={escaped(session / script.LOG)}",
            "--open-mode=append",
            f"--nodes={asked.nodes}",
            f"--ntasks={asked.tasks}",
            f"--cpus-per-task={asked.cpus_per_task}",
            f"--time={max(1, -(-asked.walltime_s // 60))}",
            *_given(asked),
        ]

    def parse(self, done: Finished) -> SubmitAnswer:
        """Pure. Accepted only with status 0 and an id; refused only where slurmctld said so."""
        words = clean(done.stderr.decode("utf-8", "replace"))
        if done.timed_out or done.truncated or not done.ended:
            return SubmitAnswer(Verdict.UNKNOWN, words=words or "sbatch was killed at its deadline")
        lines = done.stdout.decode("utf-8", "replace").split()
        if done.code == 0 and lines and (match := _PARSABLE.fullmatch(lines[-1])):
            return SubmitAnswer(None, id=match[1], words=words)
        if done.code == 0:
            return SubmitAnswer(Verdict.UNKNOWN, words="sbatch ended well without an id")
        return SubmitAnswer(judge(done.stderr.decode("utf-8", "replace")), words=words or f"exit {done.code}")


def client_lock(job: str) -> str:
    """The lock that every sbatch of a job holds for as long as it lives."""
    return f"sbatch-{job}"


def escaped(path: PurePosixPath) -> str:
    """Slurm replaces ``%j`` and the like in output paths; ``%%`` stands for itself."""
    return str(path).replace("%", "%%")


def _given(asked: Submission) -> list[str]:
    """The options that are only there when asked for."""
    found = [
        f"--{option}={value}"
        for option, value in (
            ("partition", asked.partition),
            ("account", asked.slurm_account),
            ("qos", asked.qos),
            ("reservation", asked.reservation),
            ("constraint", asked.constraint),
        )
        if value
    ]
    if asked.memory_per_node:
        found.append(f"--mem={-(-asked.memory_per_node // (1 << 20))}M")
    if asked.exclusive:
        found.append("--exclusive")
    gres = [f"{asked.gpus.gres}:{asked.gpus.count}"] if asked.gpus else []
    gres.extend(asked.gres)
    if gres:
        found.append(f"--gres={','.join(gres)}")
    if asked.after:
        kinds = (f"{'afterok' if after.ok else 'afterany'}:{after.ref.id}" for after in asked.after)
        found.append(f"--dependency={','.join(kinds)}")
    return found
