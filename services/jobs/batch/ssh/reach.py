"""A cluster behind its login nodes: the slurm driver with its clients run there, and the life of the connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from edged.accounts.api import Batch
from edged.config.batch import SshCluster
from edged.errors import ConfigError
from services.jobs.batch.protocol import Reached, Surroundings
from services.jobs.batch.slurm.driver import Slurm
from services.jobs.batch.ssh.files import SftpFiles
from services.jobs.batch.ssh.links import Links
from services.jobs.batch.ssh.workplace import SshBatch
from services.jobs.sessions import Sessions

if TYPE_CHECKING:
    from edged.config.jobs import Jobs


class SlurmOverSsh(Slurm):
    """One cluster behind login nodes, under the name its queues use."""

    def __init__(self, name: str, config: Jobs, accounts: Batch) -> None:
        super().__init__(config, accounts)
        self.name = name


class Reach:
    """The life of one cluster's connections: a service of the jobs front."""

    def __init__(self, links: Links) -> None:
        self.name = links.name
        self.batch = SshBatch(links)
        self.files = SftpFiles(links)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with self.batch.running(tasks), self.files.running(tasks):
            yield

    def not_ready(self) -> str | None:
        return self.batch.not_ready()


def reach(site: Surroundings) -> Reached:
    """The cluster that ``site`` describes. Raises ConfigError."""
    if not isinstance(site.cluster, SshCluster):
        raise ConfigError([f"jobs.cluster {site.cluster.name}: not of kind ssh"])
    made = Reach(Links(site.cluster, site.credentials))
    return Reached(SlurmOverSsh(site.cluster.name, site.config, made.batch), Sessions(made.files), made)
