"""Reading squeue: one line a job, in the fewest fields that a sweep needs.

Start times and node counts that the scheduler keeps re-estimating are left out, so that a waiting job's
line is the same from one poll to the next.
"""

from __future__ import annotations

from collections.abc import Callable

from services.jobs.batch.protocol import NAME_PREFIX, BatchJob, BatchRef
from services.jobs.batch.slurm.hostlist import expand
from services.jobs.batch.slurm.states import standing

# id, name, state, submit time, nodes, reason; the name of a job that is not ours may have '|' in it,
# such a line is recognised by its prefix and skipped. The reason, free text, comes last.
FORMAT = "%A|%j|%T|%V|%N|%r"
EXIT_CODES = "JobID:24,exit_code:24,Name:160"
_MARK = b"|" + NAME_PREFIX.encode()


def reader(cluster: str) -> Callable[[bytes], BatchJob | None]:
    """A function from one line to the job, None when it is none of ours."""

    def read(line: bytes) -> BatchJob | None:
        if line[line.find(b"|") :].startswith(_MARK):
            return parse(line.decode("utf-8", "replace"), cluster)
        return None

    return read


def parse(line: str, cluster: str) -> BatchJob | None:
    """One line of ``squeue -o FORMAT`` with SLURM_TIME_FORMAT=%s."""
    parts = line.split("|", 5)
    if len(parts) != 6 or not parts[0].isdigit():
        return None
    id_, name, raw, submitted, nodes, reason = parts
    reason = "" if reason == "None" else reason
    found = standing(raw, reason)
    return BatchJob(
        ref=BatchRef(cluster, id_, float(submitted) if submitted.isdigit() else 0.0, name),
        state=found.state,
        raw_state=raw,
        reason=reason,
        stuck=found.stuck,
        nodes=expand(nodes),
        cause=found.cause,
        may_still_run=found.may_still_run,
        cancelled_by=found.cancelled_by,
    )


def exit_codes(output: str) -> dict[tuple[str, str], int]:
    """(id, name) → exit code, from columns EXIT_CODES: a wait status in 22.05, ``code:signal`` later."""
    found: dict[tuple[str, str], int] = {}
    for line in output.splitlines():
        id_, said, name = line[:24].strip(), line[24:48].strip(), line[48:].strip()
        code, colon, _ = said.partition(":")
        if code.isdigit():
            found[id_, name] = int(code) if colon else int(code) >> 8
    return found
