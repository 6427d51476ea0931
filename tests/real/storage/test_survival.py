"""Killed at any moment, disks that fill or hang, several processes on one port."""

from __future__ import annotations

import asyncio
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edged.accounts.api import Files, Place
from edged.accounts.client import AccountClient
from edged.config import load
from edged.config.storage import Export
from edged.identity.client import IdentityClient
from edged.identity.words import ServiceName
from services.storage.disk import Disk
from services.storage.space import Spaces
from services.storage.upkeep import Upkeep
from tests.support.dav import Dav
from tests.support.storage import StorageSite
from tests.support.waiting import until

OLD, NEW = b"old" * 1000, bytes(range(256)) * 40000


@pytest.fixture
def doomed(ground: Path, site: StorageSite) -> Iterator[StorageSite]:
    """An endpoint to be killed."""
    found = StorageSite(ground / "doomed", ca=site.ca, issuer=site.issuer)
    yield found
    found.kill()


def test_killed_at_random_points_a_file_is_old_or_new(doomed: StorageSite) -> None:
    """kill -9 during overwrite, MOVE and COPY: never a mixture, never nothing."""
    dice = random.Random(4711)
    for _ in range(2):
        doomed.start()
        with Dav(doomed) as dav:
            for name in ("f", "m", "c"):
                assert dav("PUT", name, OLD).status in (200, 201)
        threads = [threading.Thread(target=_work, args=(doomed, verb)) for verb in ("PUT", "MOVE", "COPY")]
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(0.0, 0.15))  # the random point
        doomed.kill()
        for thread in threads:
            thread.join(20)
        assert (doomed.root / "f").read_bytes() in (OLD, NEW)
        moved = [p for p in (doomed.root / "m", doomed.root / "m2") if p.exists()]
        assert moved
        assert moved[0].read_bytes() == OLD
        copied = doomed.root / "c2"
        assert not copied.exists() or copied.read_bytes() == OLD
        for path in (doomed.root / "m2", copied):
            path.unlink(missing_ok=True)


def _work(site: StorageSite, verb: str) -> None:
    with Dav(site) as dav, suppress(Exception):
        for _ in range(20):
            if verb == "PUT":
                dav("PUT", "f", NEW)
            elif verb == "MOVE":
                dav("MOVE", "m", Destination=dav.url("m2"))
                dav("MOVE", "m2", Destination=dav.url("m"))
            else:
                dav("COPY", "c", Destination=dav.url("c2"))


def test_orphans_of_a_killed_front_are_swept(doomed: StorageSite) -> None:
    doomed.start()
    with Dav(doomed) as dav, dav.raw() as sock:
        sock.sendall(dav.head_of("PUT", "up", Content_Length="1000000") + b"x" * 1000)
        until(doomed.temporaries, "the upload began", 10)
        doomed.kill()
    doomed.start()
    with Dav(doomed) as dav:
        assert dav("PROPFIND", "", Depth="1").hrefs.count("/cms/up") == 0  # and it is invisible meanwhile
    asyncio.run(_sweep(doomed))
    assert doomed.temporaries() == []


async def _sweep(site: StorageSite) -> None:
    async with _files(site) as (identity, files):
        verdict = await identity.asserted("upkeep", site.account)  # type: ignore[arg-type]
        assert await files.sweep(verdict.grant, Place("cms", ""), older_s=0.0) >= 0


class _files:
    """The identity client and file calls of a running site, as its own front has them."""

    def __init__(self, site: StorageSite) -> None:
        self._config = load(site.directory / "edged.toml")
        self._stack: list[object] = []

    async def __aenter__(self) -> tuple[IdentityClient, Files]:
        from contextlib import AsyncExitStack

        self._exit = AsyncExitStack()
        tasks = await self._exit.enter_async_context(asyncio.TaskGroup())
        identity = IdentityClient(self._config, ServiceName("storage"))
        accounts = AccountClient.of(self._config)
        await self._exit.enter_async_context(identity.running(tasks))
        await self._exit.enter_async_context(accounts.running(tasks))
        return identity, accounts.files

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()


async def test_dumps_tell_every_file(site: StorageSite, dav: Dav) -> None:
    dav("PUT", "a/b/one", b"x")
    dav("PUT", "two%20%C3%BC", b"x")
    export = Export(prefix="/cms", root=site.root, vo="cms", upkeep=site.account, dump_every_s=1.0)
    disk = Disk("cms", 1)
    async with _files(site) as (identity, files):
        upkeep = Upkeep((export,), identity, files, Spaces(files, 30.0), lambda _: disk)
        await upkeep.once(export, 1_000_000_000.0)
    disk.shutdown()
    lines = (site.root / "dumps/dump_20010909").read_text().splitlines()
    assert {f"{dav.root.name}/a/b/one", f"{dav.root.name}/two ü"} <= set(lines)
    assert not any(line.startswith("dumps/") for line in lines)


@pytest.mark.root
def test_a_full_disk_is_507_and_leaves_nothing(site: StorageSite, dav: Dav) -> None:
    small = site.directory / "small"
    options = f"size=4m,uid={small.stat().st_uid},gid={small.stat().st_gid},mode=0755"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(small)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        until(
            lambda: dav("PUT", "/small/probe", b"x").status in (200, 201) and (small / "probe").exists(),
            "seen",
            10,
        )
        full = dav("PUT", "/small/big", b"x" * (6 << 20))
        assert full.status == 507
        assert "space" in full.text
        assert sorted(p.name for p in small.iterdir()) == ["probe"]
        assert dav("PUT", "/small/fits", b"y" * 1000).status == 201
        dav("PUT", "big", b"x" * (6 << 20))
        pulled = dav("COPY", "big", Destination=dav.site.base + "/small/copy")
        assert pulled.status == 507
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


async def test_a_hung_file_server_stalls_only_its_export(tmp_path: Path) -> None:
    """All threads of one export hang; another export reads on, and the loop never stops."""
    hung, well = Disk("hung", 2), Disk("well", 2)
    release = threading.Event()
    file = tmp_path / "f"
    file.write_bytes(b"x" * 100)
    stuck = [asyncio.ensure_future(hung.run(release.wait, 30)) for _ in range(5)]
    with file.open("rb") as stream:
        async with asyncio.timeout(5):
            assert await well.run(stream.read) == b"x" * 100
            assert bytes(await well.read(stream.fileno(), 10, 0)) == b"x" * 10
    assert not any(task.done() for task in stuck)
    release.set()
    await asyncio.gather(*stuck)
    hung.close()
    well.close()


def test_several_processes_on_one_port_share_locks(ground: Path, site: StorageSite) -> None:
    settings = {"workers": 2}
    with StorageSite(ground / "workers", ca=site.ca, issuer=site.issuer, settings=settings) as many:
        clients = [Dav(many) for _ in range(8)]
        body = b'<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>'
        assert clients[0]("LOCK", "f", body).status == 201
        assert {client("PUT", "f", b"x").status for client in clients} == {423}
        assert {client("PUT", f"g{i}", b"x").status for i, client in enumerate(clients)} == {201}
        for client in clients:
            client.close()
