"""Both ways to Slurm while the network, the login node, slurmrestd and Slurm itself fail."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edged.errors import Busy, Denied, NoSpace, Unavailable, UnknownOutcome
from edged.identity.words import JobId
from edged.lifecycle import Reporting
from services.jobs.batch import script
from services.jobs.batch.protocol import BatchRef, BatchState, Cause
from services.jobs.batch.script import Payload
from tests.real.batch_remote.reaching import (
    RemoteSubject,
    Scratch,
    rest_cluster,
    rest_subject,
    ssh_cluster,
    ssh_subject,
)
from tests.support import slurm as testbed
from tests.support import sshd
from tests.support.local_accounts import CMSPRD
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.sshd import Sshd
from tests.support.waiting import until_async

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

# the clients give up after 3 s instead of 10 s; otherwise all is as in production
IMPATIENT: dict[str, Any] = {"message_timeout_s": 3, "slurmd_timeout_s": 5, "gpu_nodes": 0, "rest": True}


@pytest.fixture(scope="module")
def fragile() -> Iterator[SlurmTestbed]:
    """A Slurm of this module's own, to be broken."""
    if why := testbed.missing() or sshd.missing():
        pytest.skip(why)
    with SlurmTestbed(**IMPATIENT) as found:
        yield found


@dataclass
class Far:
    """Two login nodes and a slurmrestd before one Slurm. More subjects can be made on ``stack``."""

    slurm: SlurmTestbed
    nodes: tuple[Sshd, Sshd]
    signing: Signing
    scratch: Scratch
    ssh: RemoteSubject
    rest: RemoteSubject

    def way(self, name: str) -> RemoteSubject:
        found: RemoteSubject = getattr(self, name)
        return found

    def subject(self, *nodes: Sshd, signing: Signing | None = None, **more: Any) -> Any:
        """Another driver for these login nodes."""
        cluster = ssh_cluster(self.scratch, *(nodes or self.nodes), **more)
        return ssh_subject(cluster, signing or self.signing, CMSPRD.name, self.scratch)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def far(fragile: SlurmTestbed) -> AsyncIterator[Far]:
    signing, scratch = Signing(jwt_key=fragile.layout.jwt_key), Scratch()
    environment = fragile.environment
    with (
        Sshd(signing.authority, environment=environment, settings={"MaxSessions": "2"}) as one,
        Sshd(signing.authority, environment=environment) as two,
    ):
        async with AsyncExitStack() as stack:
            cluster = ssh_cluster(scratch, one, two)
            ssh = await stack.enter_async_context(ssh_subject(cluster, signing, CMSPRD.name, scratch))
            rest = await stack.enter_async_context(
                rest_subject(rest_cluster(scratch, fragile), signing, CMSPRD.name, scratch)
            )
            for way in (ssh, rest):
                await way.system.site(way.grant)
            yield Far(fragile, (one, two), signing, scratch, ssh, rest)
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


# -- Slurm ----------------------------------------------------------------------------------------


async def test_a_frozen_controller_takes_the_job_and_it_is_found(far: Far) -> None:
    since, ways = time.time() - 1, (far.ssh, far.rest)
    jobs = [way.job() for way in ways]

    async def asked(way: RemoteSubject, job: str) -> None:
        with pytest.raises(UnknownOutcome):
            await way.shell("echo ran >>runs", job)
        with pytest.raises(Unavailable):
            await way.system.find(way.grant, job, since)

    far.slurm.freeze_controller()
    try:
        await asyncio.gather(*map(asked, ways, jobs))
    finally:
        far.slurm.thaw_controller()
    for way, job in zip(ways, jobs, strict=True):
        found = await settled(way, job, since)
        assert len(found) == 1
        assert (await way.final(found[0].ref)).state is BatchState.FINISHED
        assert way.output(found[0].ref, "runs") == "ran\n"


async def test_a_controller_that_is_down_has_no_job(far: Far) -> None:
    since, ways = time.time() - 1, (far.ssh, far.rest)
    jobs = [way.job() for way in ways]

    async def asked(way: RemoteSubject, job: str) -> None:
        with pytest.raises(UnknownOutcome):
            await way.shell("echo ran >>runs", job)
        with pytest.raises(Unavailable):
            await way.system.sweep(way.grant)

    ended = [await way.shell("exit 3") for way in ways]
    for way, ref in zip(ways, ended, strict=True):
        await way.final(ref)
    far.slurm.stop_controller()
    try:
        await asyncio.gather(*map(asked, ways, jobs))
        facts = await far.ssh.system.finals(far.ssh.grant, ended[:1])
    finally:
        far.slurm.start_controller()
    assert [(one.state, one.exit_code) for one in facts] == [(BatchState.FAILED, 3)], "accounting goes on"
    assert await asyncio.gather(*(settled(way, job, since) for way, job in zip(ways, jobs, strict=True))) == [
        [],
        [],
    ]


async def test_acknowledged_jobs_can_be_lost_and_their_ids_come_back(far: Far) -> None:
    """kill -9 of slurmctld takes what it acknowledged last; whoever gets a lost id is another job."""
    since, ways = time.time() - 1, (far.ssh, far.rest)
    submitted = [(way, await way.shell("sleep 30", nodes=2, tasks=2, exclusive=True)) for way in ways * 2]
    far.slurm.kill_controller()
    far.slurm.start_controller()
    kept = await asyncio.gather(*(settled(way, _job(ref), since) for way, ref in submitted))
    lost = [pair for pair, found in zip(submitted, kept, strict=True) if not found]
    others = [
        (way, await way.shell("exit 0")) for way in ways for _ in lost
    ]  # get the ids of the lost, or near
    for way, ref in lost:
        assert not await way.system.finals(way.grant, [ref]), "another job's end is not this one's"
    for way, ref in submitted:
        await way.system.cancel(way.grant, ref)
    for way, ref in others:
        assert (await way.final(ref)).state is BatchState.FINISHED, "cancelling a lost job hits no other"


async def test_a_lost_node_fails_the_job_but_it_may_still_run(far: Far) -> None:
    """Both ways tell alike: the site's fault, and the processes may be alive."""
    refs = [await way.shell("sleep 60", tasks=8) for way in (far.ssh, far.rest)]
    running = [
        await way.seen(ref, BatchState.RUNNING) for way, ref in zip((far.ssh, far.rest), refs, strict=True)
    ]
    nodes = {job.nodes[0] for job in running}
    for node in nodes:
        far.slurm.kill_node(node)
    try:
        ends = await asyncio.gather(far.ssh.final(refs[0]), far.rest.final(refs[1]))
    finally:
        for node in nodes:
            far.slurm.start_node(node)
    assert {(end.state, end.cause, end.raw_state) for end in ends} == {
        (BatchState.FAILED, Cause.SITE, "NODE_FAIL")
    }
    assert all(end.may_still_run for end in ends)


def _job(ref: BatchRef) -> str:
    return ref.name.removeprefix("edged-")


# -- slurmrestd -----------------------------------------------------------------------------------


async def test_slurmrestd_restarts(far: Far) -> None:
    far.slurm.rest.kill()
    with pytest.raises((Busy, UnknownOutcome)):  # over a kept connection nobody knows
        await far.rest.shell("exit 0")
    with pytest.raises(Busy):  # nobody listens: nothing was sent
        await far.rest.shell("exit 0")
    with pytest.raises(Unavailable):
        await far.rest.system.sweep(far.rest.grant)
    far.slurm.start_rest()
    ref = await far.rest.shell("exit 0")
    assert (await far.rest.final(ref)).state is BatchState.FINISHED


async def test_a_frozen_slurmrestd_is_an_unknown_outcome(far: Far) -> None:
    config = {"client_deadline_s": 11.5}
    cluster = rest_cluster(far.scratch, far.slurm)
    async with rest_subject(cluster, far.signing, CMSPRD.name, far.scratch, config=config) as way:
        await way.system.site(way.grant)
        job, since = way.job(), time.time() - 1
        far.slurm.rest.freeze()
        try:
            with pytest.raises(UnknownOutcome):
                await way.shell("echo ran >>runs", job)
        finally:
            far.slurm.rest.thaw()
        found = await settled(way, job, since)
        assert len(found) == 1, "it was in the socket's queue and ran later"
        assert (await way.final(found[0].ref)).state is BatchState.FINISHED


async def test_tokens_that_end_are_replaced(far: Far) -> None:
    """An expired token is a 500 of many meanings; the next question brings a new one."""
    short = Signing(life_s=1, jwt_key=far.slurm.layout.jwt_key)
    cluster = rest_cluster(far.scratch, far.slurm, token_s=30.0)
    async with rest_subject(cluster, short, CMSPRD.name, far.scratch) as way:
        for _ in range(3):
            await way.system.sweep(way.grant)
            await asyncio.sleep(1.1)  # the life of a token
        assert short.signed >= 3
        key = far.scratch.root / "another.key"
        key.write_bytes(bytes(range(32)))
        foreign = Signing(jwt_key=key)
        async with rest_subject(cluster, foreign, CMSPRD.name, far.scratch) as wrong:
            with pytest.raises(Unavailable):
                await wrong.system.sweep(wrong.grant)
            with pytest.raises((UnknownOutcome, Busy)):
                await wrong.shell("exit 0")


async def test_nothing_has_changed_costs_nothing(far: Far) -> None:
    before = await far.rest.system.sweep(far.rest.grant)
    same = await until_async(lambda: _same(far.rest, before.records), "a quiet moment", 20)
    assert same


async def _same(way: RemoteSubject, _: frozenset[bytes]) -> bool:
    first = await way.system.sweep(way.grant)
    return (await way.system.sweep(way.grant)).records is first.records


# -- the login node -------------------------------------------------------------------------------


async def test_a_connection_cut_at_every_step_of_a_submission(far: Far) -> None:
    """Whenever the line is cut, the job is found or surely absent, and runs at most once."""
    since = time.time() - 1

    async def cut_after(delay_s: float) -> tuple[str, int]:
        """The job, and how many of it there may be."""
        job = far.ssh.job()
        submitting = asyncio.ensure_future(far.ssh.shell("echo ran >>runs", job))
        await asyncio.sleep(delay_s)  # where in the submission the cut falls is what is tried here
        for node in far.nodes:
            node.cut()
        try:
            await submitting
        except Busy:  # certainly not submitted: the engine would ask again
            return job, 0
        except UnknownOutcome:
            pass
        return job, 1

    tried = [await cut_after(delay_s) for delay_s in (0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12)]
    ends = await asyncio.gather(*(settled(far.ssh, job, since) for job, _ in tried))
    for (_, at_most), found in zip(tried, ends, strict=True):
        assert len(found) <= at_most
        for one in found:
            assert (await far.ssh.final(one.ref)).state is BatchState.FINISHED
            assert far.ssh.output(one.ref, "runs") == "ran\n"


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
    from edged import sshca

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
    """An upload and a download that take longer than the certificate lives go on over the next connection."""
    node = far.nodes[1]
    async with far.subject(node, signing=_like(far.signing, life_s=3)) as way:
        sessions, job = way.far.sessions, JobId(way.job())
        assert sessions is not None
        await sessions.create(way.grant, job, {})
        begun = time.monotonic()

        async def slowly() -> AsyncIterator[bytes]:
            for number in range(9):
                await asyncio.sleep(0.5)  # a slow sender is what is tried
                yield bytes([number]) * 1000

        await sessions.put(way.grant, job, "slow", slowly(), 1 << 20)
        assert time.monotonic() - begun > 4
        opened = await sessions.open(way.grant, job, "slow")
        read = b""
        while block := await opened.read(1000, len(read)):
            read += block
            await asyncio.sleep(0.4)  # and a slow reader
        opened.close()
        assert read == b"".join(bytes([number]) * 1000 for number in range(9))
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

        assert all(await asyncio.gather(*(read() for _ in range(60))))


async def test_noisy_and_slow_login_shells(far: Far) -> None:
    home = Path("/home/cmsprd/.bashrc")
    before = home.read_bytes() if home.exists() else None
    home.write_text("echo 'Welcome to the cluster!'; printf 'x%.0s' {1..20000}; sleep 0.3; echo bye >&2\n")
    try:
        async with far.subject() as way:
            ref = await way.shell("exit 0")
            assert (await way.final(ref)).state is BatchState.FINISHED
    finally:
        home.unlink() if before is None else home.write_bytes(before)


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
