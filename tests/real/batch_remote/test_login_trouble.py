"""The way over login nodes while they, the network, certificates and the files there fail."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edged import sshca
from edged.errors import Busy, Denied, NoSpace, Unavailable
from edged.identity.words import JobId
from edged.lifecycle import Reporting
from services.jobs.batch import script
from services.jobs.batch.protocol import BatchState
from services.jobs.batch.script import Payload
from tests.real.batch_remote.reaching import Far, RemoteSubject, far_side
from tests.support.local_accounts import CMSPRD
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.sshd import Sshd
from tests.support.waiting import until_async

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def far(slurm: SlurmTestbed) -> AsyncIterator[Far]:
    async with far_side(slurm) as found:
        yield found


async def test_a_login_node_reboots_and_the_other_serves(far: Far) -> None:
    far.nodes[0].stop()
    try:  # a submission over the line that just broke would be an unknown outcome, rightly
        await until_async(lambda: _answers(far.ssh), "the other node", 20)
        ref = await far.ssh.shell("exit 0")
        assert (await far.ssh.final(ref)).state is BatchState.FINISHED
    finally:
        far.nodes[0].start()
    far.nodes[1].stop()
    try:
        await until_async(lambda: _answers(far.ssh), "the first node again", 20)
    finally:
        far.nodes[1].start()


async def _answers(way: RemoteSubject) -> bool:
    try:
        await way.system.sweep(way.grant)
    except Unavailable:
        return False
    return True


async def test_a_half_dead_connection_is_left(far: Far) -> None:
    """Everything stays open and nothing answers: probes end it, a new connection takes over."""
    async with far.subject(keepalive_s=0.5) as way:
        await way.system.sweep(way.grant)
        for node in far.nodes:
            node.freeze()
        try:
            with pytest.raises(Unavailable):
                await way.system.sweep(way.grant)
            await until_async(lambda: _answers(way), "a new connection", 20)
        finally:
            for node in far.nodes:
                node.thaw()


async def test_another_host_key_is_refused(far: Far) -> None:
    node = far.nodes[0]
    async with far.subject(node) as way:
        await way.system.sweep(way.grant)
        node.stop()
        node.new_host_key()
        node.start()
        while True:  # the first failure may be the cut itself
            with pytest.raises(Unavailable) as refusal:
                await way.system.sweep(way.grant)
            if "no login node" in refusal.value.message:
                break
        assert "pinned" in refusal.value.detail
        assert isinstance(way.far.service, Reporting) and way.far.service.not_ready() is not None
    async with far.subject(node) as again:  # pinned anew by the site
        await again.system.sweep(again.grant)


@pytest.mark.parametrize("kind", ["foreign", "expired", "revoked"])
async def test_certificates_that_are_no_good(far: Far, kind: str) -> None:
    node = far.nodes[1]
    signing = Signing() if kind == "foreign" else Signing(life_s=-10 if kind == "expired" else 300)
    if kind != "foreign":
        signing.key = far.signing.key
    if kind == "revoked":
        now = time.time()
        node.revoke(sshca.revocation_list(signing.key.public_key(), [1], version=1, made_at=now))
    try:
        async with far.subject(node, signing=signing) as way:
            with pytest.raises(Unavailable) as refusal:
                await way.system.sweep(way.grant)
            assert "refuses the login" in refusal.value.detail
            if kind == "revoked":  # the next certificate has another serial
                assert await _answers(way)
                return
            with pytest.raises((Busy, Unavailable)):
                await way.shell("exit 0")
    finally:
        node.revoke(b"")


async def test_a_connection_ends_with_its_certificate(far: Far) -> None:
    node = far.nodes[1]
    async with far.subject(node, signing=_like(far.signing, life_s=3)) as way:
        await way.system.sweep(way.grant)
        sessions = set(node.sessions())

        async def replaced() -> bool:
            await way.system.sweep(way.grant)
            return not sessions & set(node.sessions())

        await until_async(replaced, "the first connection gone, work going on", 15)


async def test_long_transfers_outlive_a_certificate(far: Far) -> None:
    """An upload and a download that are under way when the certificate ends go on over the next connection."""
    node = far.nodes[1]
    async with far.subject(node, signing=_like(far.signing, life_s=3)) as way:
        sessions, job = way.far.sessions, JobId(way.job())
        assert sessions is not None
        await sessions.create(way.grant, job, {})

        async def ended_there(connections: set[int]) -> None:
            """Every connection that there was has ended with its certificate."""

            async def gone() -> bool:
                return not connections & set(node.sessions())

            await until_async(gone, "connections end with their certificate", 15)

        async def interrupted() -> AsyncIterator[bytes]:
            for number in range(2):
                yield bytes([number]) * 1000
                await ended_there(set(node.sessions()))

        await sessions.put(way.grant, job, "slow", interrupted(), 1 << 20)
        opened = await sessions.open(way.grant, job, "slow")
        read = await opened.read(1000, 0)
        await ended_there(set(node.sessions()))
        while block := await opened.read(1000, len(read)):
            read += block
        opened.close()
        assert read == b"".join(bytes([number]) * 1000 for number in range(2))
        assert [one.name for one in await sessions.list(way.grant, job)] == ["slow"]


def _like(signing: Signing, **more: Any) -> Signing:
    other = Signing(**more)
    other.key = signing.key
    return other


async def test_two_hundred_readers_at_once(far: Far) -> None:
    """One login node with sshd's default of ten sessions a connection: no errors."""
    async with far.subject(far.nodes[1]) as way:
        ref = await way.shell("exit 0")
        turn = asyncio.Semaphore(16)

        async def read() -> bool:
            async with turn:
                return bool(await way.system.find(way.grant, ref.name.removeprefix("edged-"), 0.0))

        assert all(await asyncio.gather(*(read() for _ in range(200))))


async def test_noisy_and_slow_login_shells(far: Far) -> None:
    """The account's home on this node is one of this test's own: its true one is every other login's too."""
    home = far.scratch.root / "noisy"
    home.mkdir(mode=0o755)
    noise = "echo 'Welcome to the cluster!'; printf 'x%.0s' {1..20000}; sleep 0.3; echo bye >&2\n"
    (home / ".bashrc").write_text(f"{noise}echo here >>{home}/sourced\n")
    (home / "sourced").touch()
    (home / "sourced").chmod(0o666)
    environment = {**far.slurm.environment, "HOME": str(home)}
    with Sshd(far.signing.authority, environment=environment) as node:
        async with far.subject(node) as way:
            ref = await way.shell("exit 0")
            assert (await way.final(ref)).state is BatchState.FINISHED
    assert "here" in (home / "sourced").read_text(), "the login shell made its noise"


async def test_no_python_there_is_said(far: Far) -> None:
    async with far.subject(python="python-that-is-not") as way:
        with pytest.raises(Unavailable) as refusal:
            await way.system.sweep(way.grant)
        assert "python-that-is-not" in refusal.value.detail


async def test_a_full_disk_on_the_far_side(far: Far) -> None:
    """A file system of 256 KiB: what does not fit is refused as such, and leaves nothing behind."""
    small = far.scratch.root / "full"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=777", "none", str(small)], check=True)
    try:
        async with far.subject(sessions=f"{small}/{{account}}") as way:
            sessions = way.far.sessions
            assert sessions is not None
            job = JobId(way.job())
            await sessions.create(way.grant, job, script.session_files(job, Payload(executable="true")))
            with pytest.raises(NoSpace):
                await sessions.put(way.grant, job, "big", _zeros(1 << 20), 1 << 30)
            names = await until_async(lambda: _clean(way, job), "the rest removed", 10)
            assert names
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def _clean(way: RemoteSubject, job: JobId) -> bool:
    assert way.far.sessions is not None
    return [one.name for one in await way.far.sessions.list(way.grant, job)] == []


async def _zeros(size: int) -> AsyncIterator[bytes]:
    for _ in range(size >> 16):
        yield bytes(1 << 16)


async def test_an_sftp_server_that_stalls(far: Far) -> None:
    """It takes requests and answers none: the caller hears within ``stall_s``, clients go on."""
    settings = {"Subsystem": "sftp /bin/cat"}
    with Sshd(far.signing.authority, environment=far.slurm.environment, settings=settings) as node:
        cat = {"Subsystem": "sftp /usr/bin/sleep 1000"}
        with Sshd(far.signing.authority, environment=far.slurm.environment, settings=cat) as silent:
            for broken in (silent, node):
                async with far.subject(broken, stall_s=1.0) as way:
                    assert way.far.sessions is not None
                    with pytest.raises(Unavailable):
                        await way.far.sessions.list(way.grant, JobId("any"))
                    assert await _answers(way)


async def test_a_forced_command_serves_only_our_verbs(far: Far, tmp_path: Path) -> None:
    helper = far.scratch.root / "edged-remote"
    helper.write_bytes((Path(script.__file__).parent / "ssh/remote/edged-remote").read_bytes())
    helper.chmod(0o755)
    command = f"/usr/bin/python3 -I {helper} --sessions {far.scratch.template}"
    signing = _like(far.signing, force_command=command)
    node = far.nodes[1]
    async with far.subject(node, signing=signing, force_command=command) as way:
        ref = await way.shell("exit 0")
        assert (await way.final(ref)).state is BatchState.FINISHED
        sessions = way.far.sessions
        assert sessions is not None
        job = JobId(way.job())
        await sessions.create(way.grant, job, script.session_files(job, Payload(executable="true")))
        await sessions.put(way.grant, job, "sub/in", _zeros(1 << 17), 1 << 30)
        opened = await sessions.open(way.grant, job, "sub/in")
        assert (opened.entry.size, await opened.read(10, (1 << 17) - 5)) == (1 << 17, bytes(5))
        opened.close()
        await sessions.remove(way.grant, job)
        poll = signing.grant(CMSPRD.name, "standing")
        await way.system.sweep(poll)
        with pytest.raises(Denied):
            await way.system.submit(poll, way.submission(way.job()))
