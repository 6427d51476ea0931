"""A cluster behind a slurmrestd, its files mounted here or behind SSH."""

from __future__ import annotations

from edged.config.batch import SlurmRestCluster
from edged.errors import ConfigError
from services.jobs.batch.protocol import Reached, Surroundings
from services.jobs.batch.slurmrest.rest import Rest
from services.jobs.batch.slurmrest.system import SlurmRest


def reach(site: Surroundings) -> Reached:
    """The cluster that ``site`` describes. ``sessions_by``: another cluster's way to the files. Raises ConfigError."""
    cluster = site.cluster
    if not isinstance(cluster, SlurmRestCluster):
        raise ConfigError([f"jobs.cluster {cluster.name}: not of kind slurmrest"])
    rest = Rest(cluster, site.credentials, site.config.client_deadline_s)
    lender = site.reached.get(cluster.sessions_by) if cluster.sessions_by else None
    return Reached(SlurmRest(cluster, rest), lender.sessions if lender else None, rest)
