"""slurmrestd as sites have it: by https from another machine, and without a slurmdbd. It is a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.errors import Busy, Unavailable
from edged.identity.testca import ThrowAwayCa
from services.jobs.batch.protocol import BatchState
from tests.real.batch_remote.reaching import KNOWN, Scratch, rest_cluster, rest_subject
from tests.support import slurm as testbed
from tests.support.local_accounts import CMSPRD
from tests.support.signing import Signing
from tests.support.slurm import SlurmTestbed
from tests.support.tls_front import tls_front

pytestmark = [pytest.mark.slurm, pytest.mark.root]


async def test_the_right_server_is_used_and_others_are_not(slurm: SlurmTestbed, tmp_path: Path) -> None:
    """By CA and by name. What was refused was never sent: it may be asked again, elsewhere."""
    signing, scratch = Signing(jwt_key=slurm.layout.jwt_key), Scratch()
    ours, foreign = ThrowAwayCa(tmp_path / "ca"), ThrowAwayCa(tmp_path / "foreign")
    cases = (
        (ours, "127.0.0.1", ""),
        (foreign, "127.0.0.1", "local issuer"),
        (ours, "slurm.other", "not valid for"),
    )
    for authority, name, wrong in cases:
        async with tls_front(slurm.layout.rest_socket, authority.host(name)) as port:
            cluster = rest_cluster(scratch, slurm, url=f"https://127.0.0.1:{port}", ca_file=str(ours.file))
            async with rest_subject(cluster, signing, CMSPRD.name, scratch, **KNOWN) as way:
                if not wrong:
                    ref = await way.shell("exit 3")
                    assert (await way.final(ref)).exit_code == 3
                    gone = await way.shell("sleep 300")
                    await way.seen(gone, BatchState.RUNNING)
                    await way.system.cancel(way.grant, gone)
                    assert (await way.final(gone)).state is BatchState.KILLED
                    continue
                with pytest.raises(Unavailable) as refusal:
                    await way.system.sweep(way.grant)
                assert wrong in refusal.value.detail
                with pytest.raises((Busy, Unavailable)):
                    await way.shell("exit 0")
    scratch.remove()


async def test_slurmctld_alone_remembers_long_enough() -> None:
    """``accounting = false``: for MinJobAge it knows how jobs ended."""
    if why := testbed.missing():
        pytest.skip(why)
    with SlurmTestbed(rest=True, accounting=False) as slurm:
        signing, scratch = Signing(jwt_key=slurm.layout.jwt_key), Scratch()
        cluster = rest_cluster(scratch, slurm, accounting=False)
        async with rest_subject(cluster, signing, CMSPRD.name, scratch, **KNOWN) as way:
            assert not await way.system.sees_all(way.grant)
            ref = await way.shell("exit 255")
            assert (await way.final(ref)).exit_code == 255
            found = await way.system.find(way.grant, ref.name.removeprefix("edged-"), 0.0)
            assert [one.ref.id for one in found] == [ref.id]
            gone = await way.shell("sleep 300")
            await way.seen(gone, BatchState.RUNNING)
            await way.system.cancel(way.grant, gone)
            assert (await way.final(gone)).state is BatchState.KILLED
        scratch.remove()
