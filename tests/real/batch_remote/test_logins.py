"""Who may log in, and to whom: each kind of credential and of pinned host key, on a real sshd."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest

from edged import metrics
from edged.config.batch import SshCluster
from edged.errors import Unavailable
from edged.identity.words import Action
from services.jobs.batch.ssh.links import Links
from tests.real.batch_remote.reaching import Scratch, ssh_cluster
from tests.support import netns, sshd
from tests.support.local_accounts import ATLPRD, CMSPRD
from tests.support.signing import Signing
from tests.support.sshd import Sshd
from tests.support.waiting import until_async

pytestmark = pytest.mark.root

HOLE = "add table inet hole; add chain inet hole in { type filter hook input priority 0; policy drop; }"


@pytest.fixture(scope="module")
def signing() -> Signing:
    return Signing()


@pytest.fixture(scope="module")
def node(signing: Signing) -> Iterator[Sshd]:
    if why := sshd.missing():
        pytest.skip(why)
    with Sshd(signing.authority) as found:
        yield found


@pytest.fixture(scope="module")
def scratch() -> Iterator[Scratch]:
    found = Scratch()
    yield found
    found.remove()


@asynccontextmanager
async def connections(cluster: SshCluster, signing: Signing) -> AsyncIterator[Links]:
    links = Links(cluster, signing)
    async with asyncio.TaskGroup() as tasks, links.running(tasks):
        yield links


async def landed(links: Links, signing: Signing, account: str = CMSPRD.name) -> str:
    """Whom the login node takes us for."""
    async with links.link(signing.grant(account), Action.JOB_POLL) as link:
        return str((await link.agent.hello())["account"])


async def refused(cluster: SshCluster, signing: Signing, account: str = CMSPRD.name) -> str:
    """Why there is no login."""
    async with connections(cluster, signing) as links:
        with pytest.raises(Unavailable) as refusal:
            await landed(links, signing, account)
        return refusal.value.detail


def key_file(path: Path) -> str:
    """A new private key at ``path``; its public line."""
    path.unlink(missing_ok=True)
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(argv, check=True, timeout=30)
    return path.with_name(path.name + ".pub").read_text().strip()


async def test_a_key_for_each_account(node: Sshd, scratch: Scratch, signing: Signing, tmp_path: Path) -> None:
    public = {account.name: key_file(tmp_path / account.name) for account in (CMSPRD, ATLPRD)}
    cluster = ssh_cluster(scratch, node, keys=f"{tmp_path}/{{account}}")
    node.authorize(CMSPRD.name, public[CMSPRD.name])
    node.authorize(ATLPRD.name, public[CMSPRD.name])  # not atlprd's own
    async with connections(cluster, signing) as links:
        before = signing.signed
        assert await landed(links, signing) == CMSPRD.name
        assert signing.signed == before, "no certificate is asked for"
    assert "refuses the login of atlprd" in await refused(cluster, signing, ATLPRD.name)
    node.authorize(ATLPRD.name, public[ATLPRD.name])
    async with connections(cluster, signing) as links:
        assert await landed(links, signing, ATLPRD.name) == ATLPRD.name
    (tmp_path / CMSPRD.name).write_text("not a key")
    assert str(tmp_path / CMSPRD.name) in await refused(cluster, signing)


@pytest.mark.parametrize("right", [True, False])
async def test_a_known_hosts_file(
    node: Sshd, scratch: Scratch, signing: Signing, tmp_path: Path, right: bool
) -> None:
    key = node.host_key if right else key_file(tmp_path / "another").strip()
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{node.port} {key}\n")
    cluster = ssh_cluster(scratch, node, host_keys=(), known_hosts=str(known))
    if right:
        async with connections(cluster, signing) as links:
            assert await landed(links, signing) == CMSPRD.name
    else:
        assert "host key is not the pinned one" in await refused(cluster, signing)


@pytest.mark.parametrize("kind", ["right", "foreign", "other name"])
async def test_a_certificate_of_the_node(
    scratch: Scratch, signing: Signing, tmp_path: Path, kind: str
) -> None:
    """``host_cas``: the node shows a certificate of that CA, for its own name."""
    trusted = key_file(tmp_path / "ca")
    key_file(tmp_path / "other")
    with Sshd(signing.authority) as node:
        name = "login9.example.org" if kind == "other name" else "127.0.0.1"
        node.certify_host(tmp_path / ("other" if kind == "foreign" else "ca"), name)
        node.stop()
        node.start()
        cluster = ssh_cluster(scratch, node, host_keys=(), host_cas=(trusted,))
        if kind == "right":
            async with connections(cluster, signing) as links:
                assert await landed(links, signing) == CMSPRD.name
        else:
            assert "host key is not the pinned one" in await refused(cluster, signing)


@pytest.mark.parametrize(("network", "let_in"), [("127.0.0.0/8", True), ("192.0.2.0/24", False)])
async def test_a_certificate_is_good_from_its_addresses_only(
    node: Sshd, scratch: Scratch, signing: Signing, network: str, let_in: bool
) -> None:
    bound = Signing(source_addresses=(network,))
    bound.key = signing.key
    cluster = ssh_cluster(scratch, node)
    if let_in:
        async with connections(cluster, bound) as links:
            assert await landed(links, bound) == CMSPRD.name
    else:
        assert "refuses the login of cmsprd" in await refused(cluster, bound)


async def test_another_host_key_raises_the_alarm(scratch: Scratch, signing: Signing, tmp_path: Path) -> None:
    """The metric that the alert rule EdgedHostKeyMismatch looks at: up with the wrong key, down with the right one."""
    with Sshd(signing.authority) as node:
        cluster = ssh_cluster(scratch, node, name="alarmed", host_keys=(key_file(tmp_path / "x"),))
        await refused(cluster, signing)
        assert mismatch(node) == 1
        async with connections(ssh_cluster(scratch, node, name="alarmed"), signing) as links:
            await landed(links, signing)
        assert mismatch(node) == 0


def mismatch(node: Sshd) -> float:
    told = metrics.REGISTRY.get_sample_value(
        "edged_ssh_host_key_mismatch", {"cluster": "alarmed", "node": node.login}
    )
    assert told is not None
    return told


async def test_a_network_that_swallows_everything(scratch: Scratch, signing: Signing) -> None:
    """No reset, no answer: packets vanish in the middle. Probes end the connection; the way back is taken."""
    if why := sshd.missing():
        pytest.skip(why)
    with (
        netns.far_side("blackhole") as (space, address, _),
        Sshd(signing.authority, space=space, address=address) as node,
    ):
        cluster = ssh_cluster(scratch, node, keepalive_s=0.5, connect_s=1.5)
        async with connections(cluster, signing) as links:
            assert await landed(links, signing) == CMSPRD.name
            space.run("nft", HOLE)
            with pytest.raises(Unavailable):
                await landed(links, signing)
            with pytest.raises(Unavailable) as refusal:
                await landed(links, signing)
            assert "no login within" in refusal.value.detail
            space.run("nft", "delete table inet hole")

            async def again() -> bool:
                try:
                    return await landed(links, signing) == CMSPRD.name
                except Unavailable:
                    return False

            await until_async(again, "a login after the hole is gone", 20)


async def test_two_sessions_are_enough(scratch: Scratch, signing: Signing) -> None:
    """MaxSessions 2: one for the helper, one for files."""
    with Sshd(signing.authority, settings={"MaxSessions": "2"}) as node:
        async with (
            connections(ssh_cluster(scratch, node), signing) as links,
            links.link(signing.grant(CMSPRD.name), Action.JOB_POLL) as link,
        ):
            assert await (await link.sftp()).exists("/")
            assert (await link.agent.hello())["account"] == CMSPRD.name
            with pytest.raises(asyncssh.ChannelOpenError):  # it is as narrow as we say
                await link.connection.start_sftp_client()
