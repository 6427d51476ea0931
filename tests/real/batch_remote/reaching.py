"""Drivers of remote batch systems under test: a login node, a cluster section, and the life they need."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.config.batch import SlurmRestCluster, SshCluster
from edged.config.jobs import Jobs
from edged.errors import Unavailable
from services.jobs.batch.conformance import Subject
from services.jobs.batch.protocol import BatchRef, GpuRequest, Reached, Surroundings
from services.jobs.batch.script import Files
from services.jobs.batch.slurmrest.driver import DRIVER as REST
from services.jobs.batch.ssh.driver import DRIVER
from tests.support.local_accounts import CMSPRD
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.sshd import Sshd

BASE: dict[str, Any] = {"partition": "cpu", "memory_per_node": 100 << 20, "walltime_s": 600}


# what the conformance suite is told of the testbed
KNOWN: dict[str, Any] = {
    "filler": {"nodes": 2, "tasks": 2, "exclusive": True},
    "impossible": {"memory_per_node": 1 << 50},
    "gpu": {"partition": "gpu", "gpus": GpuRequest("gpu:h200", 1)},
}


class NoAccounts:
    """A remote driver asks nothing of this machine's accounts."""

    async def perform(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is done as a local account")


class Scratch:
    """A directory of the far side with one sessions directory per account."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="edged-scratch-"))
        self.root.chmod(0o755)

    @property
    def template(self) -> str:
        return f"{self.root}/{{account}}/edged"

    def account(self, name: str) -> Path:
        """The sessions directory of ``name``, made as the site would."""
        entry = pwd.getpwnam(name)
        home = self.root / name
        home.mkdir(exist_ok=True)
        os.chown(home, entry.pw_uid, entry.pw_gid)
        return home / "edged"

    def put(self, account: str, job: str, files: Files) -> None:
        """Write a session's files as the account."""
        entry = pwd.getpwnam(account)
        session = self.account(account) / job
        for name, (content, mode) in files.items():
            file = session / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(mode)
        for path in (session.parent, session, *session.rglob("*")):
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def read(self, account: str, job: str, name: str) -> bytes | None:
        path = self.account(account) / job / name
        return path.read_bytes() if path.exists() else None

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def ssh_cluster(scratch: Scratch, *nodes: Sshd, **more: Any) -> SshCluster:
    """[[jobs.cluster]] kind = "ssh" for these login nodes."""
    settings: dict[str, Any] = {
        "name": "far",
        "kind": "ssh",
        "login": [node.login for node in nodes],
        "host_keys": [node.host_key for node in nodes],
        "sessions": scratch.template,
        "keepalive_s": 2.0,
        **more,
    }
    return SshCluster(**settings)


@asynccontextmanager
async def reached(driver: Any, cluster: Any, signing: Signing, **config: Any) -> AsyncIterator[Reached]:
    """The driver's batch system, alive."""
    found: Reached = driver.reach(Surroundings(Jobs(**config), cluster, NoAccounts(), signing, {}))
    async with asyncio.TaskGroup() as tasks:
        if found.service is None:
            yield found
            return
        async with found.service.running(tasks):
            yield found


@asynccontextmanager
async def ssh_subject(
    cluster: SshCluster, signing: Signing, account: str, scratch: Scratch, **known: Any
) -> AsyncIterator[RemoteSubject]:
    """The ssh driver as ``account``, for the published suite and for trouble."""
    scratch.account(account)
    config: Mapping[str, Any] = known.pop("config", {})
    async with reached(DRIVER, cluster, signing, **config) as far:
        yield _subject(far, signing, account, scratch, known)


def rest_cluster(scratch: Scratch, slurm: SlurmTestbed, **more: Any) -> SlurmRestCluster:
    """[[jobs.cluster]] kind = "slurmrest" for the testbed's slurmrestd."""
    settings: dict[str, Any] = {
        "name": "behind",
        "kind": "slurmrest",
        "url": f"unix:{slurm.layout.rest_socket}",
        "jwt_key": str(slurm.layout.jwt_key),
        "sessions": scratch.template,
        **more,
    }
    return SlurmRestCluster(**settings)


@asynccontextmanager
async def rest_subject(
    cluster: SlurmRestCluster, signing: Signing, account: str, scratch: Scratch, **known: Any
) -> AsyncIterator[RemoteSubject]:
    """The slurmrest driver as ``account``."""
    scratch.account(account)
    config: Mapping[str, Any] = known.pop("config", {})
    async with reached(REST, cluster, signing, **config) as far:
        yield _subject(far, signing, account, scratch, known)


def _subject(
    far: Reached, signing: Signing, account: str, scratch: Scratch, known: Mapping[str, Any]
) -> RemoteSubject:
    return RemoteSubject(
        far,
        system=far.system,
        put=lambda job, files: scratch.put(account, job, files),
        read=lambda job, name: scratch.read(account, job, name),
        uid=pwd.getpwnam(account).pw_uid,
        grant=signing.grant(account),
        **{"base": BASE, "patience_s": 90.0, **known},
    )


class RemoteSubject(Subject):
    """A subject that also knows how its batch system is reached. ``early``: a job begun a while ago."""

    def __init__(self, far: Reached, **known: Any) -> None:
        super().__init__(**known)
        self.far = far
        self.early: BatchRef | None = None

    async def walltime_job(self) -> BatchRef:
        return self.early or await super().walltime_job()


@dataclass
class Far:
    """Two login nodes and a slurmrestd before one Slurm. ``subject`` makes more ways."""

    slurm: SlurmTestbed
    nodes: tuple[Sshd, Sshd]
    signing: Signing
    scratch: Scratch
    ssh: RemoteSubject
    rest: RemoteSubject

    def subject(self, *nodes: Sshd, signing: Signing | None = None, **more: Any) -> Any:
        """Another driver for these login nodes."""
        cluster = ssh_cluster(self.scratch, *(nodes or self.nodes), **more)
        return ssh_subject(cluster, signing or self.signing, CMSPRD.name, self.scratch)


@asynccontextmanager
async def far_side(slurm: SlurmTestbed) -> AsyncIterator[Far]:
    """All of it, for ``slurm``; the first login node has room for two sessions a connection only."""
    signing, scratch = Signing(jwt_key=slurm.layout.jwt_key), Scratch()
    environment = slurm.environment
    with (
        Sshd(signing.authority, environment=environment, settings={"MaxSessions": "2"}) as one,
        Sshd(signing.authority, environment=environment) as two,
    ):
        async with AsyncExitStack() as stack:
            cluster = ssh_cluster(scratch, one, two)
            ssh = await stack.enter_async_context(ssh_subject(cluster, signing, CMSPRD.name, scratch))
            rest = await stack.enter_async_context(
                rest_subject(rest_cluster(scratch, slurm), signing, CMSPRD.name, scratch)
            )
            for way in (ssh, rest):
                await way.system.site(way.grant)
            yield Far(slurm, (one, two), signing, scratch, ssh, rest)
    scratch.remove()


async def settled(way: RemoteSubject, job: str, since: float) -> list[Any]:
    """What ``find`` answers, once it has answered the same for the time accounting may lag."""
    stands_since = time.monotonic()
    while time.monotonic() - stands_since < 5:
        try:
            found = list(await way.system.find(way.grant, job, since))
        except Unavailable:  # the cut client is only now being killed
            stands_since = time.monotonic()
            found = []
        if found:
            return found
        await asyncio.sleep(0.3)
    return []
