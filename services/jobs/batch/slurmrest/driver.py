"""The ``slurmrest`` driver: a cluster behind a slurmrestd, its files mounted here or behind SSH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.jobs.batch.protocol import Reached, Surroundings

if TYPE_CHECKING:
    from edged.accounts.api import BatchVerb


class SlurmRestDriver:
    """What the entry point names."""

    name = "slurmrest"
    verbs: tuple[type[BatchVerb], ...] = ()

    def reach(self, site: Surroundings) -> Reached:
        """The cluster that ``site`` describes."""
        # not above: accountd's workers load every driver for its verbs, and shall not be made of an HTTP client
        from services.jobs.batch.slurmrest.reach import reach

        return reach(site)


DRIVER = SlurmRestDriver()
