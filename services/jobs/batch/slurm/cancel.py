"""scancel by unique name."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from edged.accounts.api import BatchVerb
from edged.identity.words import Action
from services.jobs.batch.protocol import unique_name
from services.jobs.batch.slurm.clients import listing

if TYPE_CHECKING:
    from edged.accounts.clients import Workplace


class Cancel(BatchVerb, frozen=True, kw_only=True):
    """Cancel whatever bears the name. Not by id: ids are given out again, and a duplicate has another."""

    action: ClassVar[Action] = Action.JOB_CANCEL

    job: str
    deadline_s: float

    def perform(self, where: Workplace) -> None:
        """Raises Unavailable when slurmctld did not answer; no such job is no error."""
        listing(where, self.argv(), self.deadline_s)

    def argv(self) -> list[str]:
        return ["scancel", f"--name={unique_name(self.job)}"]
