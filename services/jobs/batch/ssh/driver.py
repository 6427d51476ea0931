"""The ``ssh`` driver: the slurm driver with its clients run on a login node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.jobs.batch.protocol import Reached, Surroundings

if TYPE_CHECKING:
    from edged.accounts.api import BatchVerb


class SshDriver:
    """What the entry point names."""

    name = "ssh"
    verbs: tuple[type[BatchVerb], ...] = ()

    def reach(self, site: Surroundings) -> Reached:
        """The cluster that ``site`` describes."""
        # not above: accountd's workers load every driver for its verbs, and shall not be made of asyncssh
        from services.jobs.batch.ssh.reach import reach

        return reach(site)


DRIVER = SshDriver()
