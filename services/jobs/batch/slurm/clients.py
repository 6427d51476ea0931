"""How Slurm's clients are run: fixed environment, own deadline, judged by status and fixed formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edged.errors import Unavailable
from services.jobs.batch.slurm.refusals import clean

if TYPE_CHECKING:
    from edged.accounts.clients import Finished, Workplace

# sbatch hands SLURM_* on to the job, whatever --export says: it gets none of these
SUBMISSION = {"LC_ALL": "C"}

# times as Unix seconds: no time zone, no hour that comes twice (and UTC is the cheapest to reckon)
LISTING = {"LC_ALL": "C", "TZ": "UTC", "SLURM_TIME_FORMAT": "%s"}
LISTING_LIMIT = 64 << 20


def listing(where: Workplace, argv: Sequence[str], deadline_s: float) -> str:
    """Output of a client that only asks. Raises Unavailable when it failed, hung or said too much."""
    return asked(where, argv, deadline_s).decode("utf-8", "replace")


def asked(where: Workplace, argv: Sequence[str], deadline_s: float) -> bytes:
    """As ``listing``, undecoded."""
    done = where.run_client(argv, env=LISTING, deadline_s=deadline_s, output_limit=LISTING_LIMIT)
    if done.code != 0 or done.timed_out or done.truncated:
        raise Unavailable(f"{argv[0]} did not answer", detail=_words(done))
    return done.stdout


def _words(done: Finished) -> str:
    if done.timed_out:
        return "killed at its deadline"
    if done.truncated:
        return "too much output"
    return f"exit {done.code}: {clean(done.stderr.decode('utf-8', 'replace'))}"
