"""For ``edged doctor`` and ``edged check --connect``: every [[jobs.cluster]], tried as far as one comes.

Each login node is asked for its host key. Then, with certificates and tokens of the running identity service, the
clusters are tried as each account that the mappings name. Nothing is submitted.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from importlib.metadata import entry_points
from typing import Any

from edged.config import Config
from edged.config.batch import SlurmRestCluster, SshCluster
from edged.config.jobs import Jobs
from edged.doctor import Finding
from edged.errors import EdgeError, Unavailable
from edged.identity.client import IdentityClient
from edged.identity.words import AccountName, Action, ServiceName
from services.jobs.batch.protocol import ENTRY_POINTS, Reached, Reaching, Surroundings
from services.jobs.batch.slurmrest.rest import Rest
from services.jobs.batch.slurmrest.wire import Wire
from services.jobs.batch.ssh import hostkeys
from services.jobs.batch.ssh.logins import Logins
from services.jobs.batch.ssh.reach import Reach

TRY_S = 15.0
SKEW_S = 30.0

# what the detail of an error has in it → what a sysadmin does about it
ADVICE = (
    ("host key", "compare with ssh-keyscan from a machine you trust, then correct host_keys; if nobody "
     "changed the node's key, somebody is between"),
    ("refuses the login", "on the login node: TrustedUserCAKeys as `edged ssh-ca show` prints it, the account allowed "
     "(AllowUsers, a shell, not locked), clocks within a minute; sshd's log says which"),
    ("cannot start edged's helper", "set `python` to a Python 3.6 or later there, or install force_command's program"),
    ("no login within", "the node accepts but is slow: look at its load and MaxStartups"),
    ("scontrol did not answer", "try `scontrol ping` there as that account; slurm_conf and slurm_bin name what "
     "the clients need when the login shell sets no SLURM_CONF or PATH"),
    ("cannot be reached", "is slurmrestd running, and its socket or port reachable by the jobs service's user?"),
    ("lets anybody in", "this is no login node of yours, or its sshd_config allows logins without a credential"),
    ("Connect", "name, port and firewall between this machine and there"),
    ("JWT key", "jwt_key: the cluster's jwt_hs256.key, readable by identity's user only"),
    ("HTTP 401", "slurmrestd must run with -a rest_auth/jwt, slurmctld with AuthAltTypes=auth/jwt"),
    ("HTTP 500", "most often a token not taken: the same jwt_key there and here, clocks; else slurmctld is down"),
)  # fmt: skip
OTHERWISE = "the log of the jobs service has the whole reason"


async def findings(config: Config) -> list[Finding]:
    """Nothing without a [[jobs.cluster]]."""
    jobs = config.jobs
    if jobs is None or not jobs.clusters:
        return []
    accounts = sorted({rule.account for rule in config.mappings})
    ssh = [one for one in jobs.clusters if isinstance(one, SshCluster)]
    nodes = await asyncio.gather(*(_nodes(one, accounts[0]) for one in ssh)) if accounts else []
    found = [finding for of_one in nodes for finding in of_one]
    right = {one.part for one in found if one.ok}
    names = [one.name for one in jobs.clusters if one.name in right or not isinstance(one, SshCluster)]
    identity = IdentityClient(config, ServiceName("jobs"))
    async with asyncio.TaskGroup() as tasks, identity.running(tasks):
        if (trouble := identity.not_ready()) is not None:
            found.append(
                Finding(
                    "clusters", False, f"logins not tried: {trouble}", "start identity: it signs for them"
                )
            )
            rest = [one for one in jobs.clusters if isinstance(one, SlurmRestCluster)]
            return found + list(await asyncio.gather(*map(_reachable, rest)))
        tried = [_cluster(jobs, name, identity, accounts) for name in names]
        return found + [finding for of_one in await asyncio.gather(*tried) for finding in of_one]


async def _nodes(cluster: SshCluster, account: str) -> list[Finding]:
    """Every login node: a cluster works as long as one of them does."""
    nodes = Logins.of(cluster).nodes
    troubles = await asyncio.gather(*(hostkeys.trouble(cluster, node, account) for node in nodes))
    return [
        Finding(cluster.name, True, f"{node.name}: a login node with the right host key")
        if trouble is None
        else judged(cluster.name, node.name, Unavailable(trouble))
        for node, trouble in zip(nodes, troubles, strict=True)
    ]


async def _reachable(cluster: SlurmRestCluster) -> Finding:
    """Whether a slurmrestd is there, as far as can be told without a token."""
    wire = Wire(cluster.url, str(cluster.ca_file) if cluster.ca_file else None, limit=1, deadline_s=TRY_S)
    try:
        told = await wire.request("GET", "/openapi/v3", {})
    except Unavailable as error:
        return judged(cluster.name, cluster.url, error)
    finally:
        wire.close()
    return Finding(cluster.name, True, f"{cluster.url}: answers (HTTP {told.status}, asked without a token)")


async def _cluster(jobs: Jobs, name: str, identity: IdentityClient, accounts: list[str]) -> list[Finding]:
    cluster = next(one for one in jobs.clusters if one.name == name)
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if cluster.kind not in points:
        return [
            Finding(name, False, f"no driver {cluster.kind!r} is installed", "install it, or correct `kind`")
        ]
    driver = points[cluster.kind].load()
    if not isinstance(driver, Reaching):
        return [
            Finding(
                name, False, f"{cluster.kind!r} needs no [[jobs.cluster]]", "name it as the queue's batch"
            )
        ]
    reached = driver.reach(Surroundings(jobs, cluster, _NobodyHere(), identity, {}))
    async with AsyncExitStack() as stack:
        if reached.service is not None:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            await stack.enter_async_context(reached.service.running(tasks))
        found = (_account(reached, identity, AccountName(account)) for account in accounts)
        return list(await asyncio.gather(*found))


async def _account(reached: Reached, identity: IdentityClient, account: AccountName) -> Finding:
    name = reached.system.name
    try:
        async with asyncio.timeout(TRY_S):
            grant = await identity.standing_grant(account)
            state = await reached.system.site(grant)
            said = await _how(reached.service, grant)
    except TimeoutError:
        return Finding(name, False, f"{account}: no answer within {TRY_S:g} s", OTHERWISE)
    except EdgeError as error:
        return judged(name, account, error)
    if said.startswith("clock"):
        return Finding(
            name, False, f"{account}: {said}", "run chronyd there and here: certificates are dated"
        )
    names = ", ".join(part.name for part in state.partitions)
    return Finding(name, True, f"{account}: Slurm {state.version}, partitions {names}{said}")


async def _how(service: object, grant: bytes) -> str:
    """By which way it was reached."""
    if isinstance(service, Reach):
        return await _login(service, grant)
    return f"; API {await service.version(grant)}" if isinstance(service, Rest) else ""


async def _login(reach: Reach, grant: bytes) -> str:
    """Where one lands, and whether its clock is right."""
    async with reach.batch.links.link(grant, Action.JOB_POLL) as link:
        told = await link.agent.hello()
    skew_s = float(told["time"]) - time.time()
    if abs(skew_s) > SKEW_S:
        return f"clock of {told['host']} is {skew_s:+.0f} s off"
    return f"; on {told['host']} with Python {told['python']}, files in {told['sessions']}"


def judged(name: str, what: str, error: EdgeError) -> Finding:
    """An error with what to do about it. ``what``: the account, node or URL that was tried."""
    words = f"{error.message} ({error.detail})" if error.detail else error.message
    advice = next((advice for mark, advice in ADVICE if mark in words), OTHERWISE)
    return Finding(name, False, f"{what}: {words}", advice)


class _NobodyHere:
    """Clusters elsewhere need no account of this machine."""

    async def perform(self, *_: Any, **__: Any) -> Any:
        raise EdgeError("a driver of a remote cluster asked for a local account")
