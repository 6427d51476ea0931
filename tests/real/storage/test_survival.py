"""Killed at any moment; upkeep; several processes on one port."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
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
from tests.support.cpu import tree
from tests.support.dav import Answer, Dav
from tests.support.storage import StorageSite
from tests.support.waiting import until

FILE_WORKER = "f-worker"  # what its process is called
OLD, NEW = b"old" * 1000, bytes(range(256)) * 40000


@pytest.fixture
def doomed(ground: Path, site: StorageSite) -> Iterator[StorageSite]:
    """An endpoint to be killed."""
    copies = {"partners": ["localhost"], "allow": ["127.0.0.0/8"]}
    found = StorageSite(ground / "doomed", ca=site.ca, issuer=site.issuer, settings={"third_party": copies})
    yield found
    found.kill()


@pytest.mark.parametrize("victim", ["edged", FILE_WORKER])
def test_killed_at_random_points_a_file_is_old_or_new(doomed: StorageSite, victim: str) -> None:
    """kill -9 of the front, or of the account's worker, during upload, overwrite, MOVE, COPY and pull:
    never a mixture, never nothing."""
    dice = random.Random(4711)
    doomed.put_file("source", NEW)
    for _ in range(3):
        doomed.start()
        with Dav(doomed) as dav:
            for name in ("f", "m", "c", "p"):
                assert dav("PUT", name, OLD).status in (200, 201)
        threads = [threading.Thread(target=_work, args=(doomed, verb)) for verb in WORK]
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(0.0, 0.25))  # the random point
        _kill(doomed, victim)
        for thread in threads:
            thread.join(20)
        doomed.kill()
        _judge(doomed.root)


def _kill(site: StorageSite, victim: str) -> None:
    if victim == "edged":
        site.kill()
        return
    for pid in tree(site.pid):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith(victim):
                os.kill(pid, signal.SIGKILL)


def _judge(root: Path) -> None:
    """Old or new, and what was moved is in one of both places."""
    for name in ("f", "p"):
        assert (root / name).read_bytes() in (OLD, NEW)
    for name in ("n", "q"):
        assert not (root / name).exists() or (root / name).read_bytes() == NEW
    moved = [path for path in (root / "m", root / "m2") if path.exists()]
    assert [path.read_bytes() for path in moved] == [OLD]
    copied = root / "c2"
    assert not copied.exists() or copied.read_bytes() == OLD
    for name in ("m2", "c2", "n", "q"):
        (root / name).unlink(missing_ok=True)


def _work(site: StorageSite, work: Callable[[Dav], object]) -> None:
    """Again and again; what fails after the kill is what is judged on the disk."""
    with Dav(site) as dav, suppress(Exception):
        for _ in range(20):
            work(dav)


def _pull(dav: Dav, name: str) -> Answer:
    token = f"Bearer {dav.token}"
    return dav("COPY", name, Source=dav.url("source"), TransferHeaderAuthorization=token)


def _to_and_fro(dav: Dav) -> None:
    dav("MOVE", "m", Destination=dav.url("m2"))
    dav("MOVE", "m2", Destination=dav.url("m"))


WORK: tuple[Callable[[Dav], object], ...] = (
    lambda dav: dav("PUT", "f", NEW),
    lambda dav: (dav("PUT", "n", NEW), dav("DELETE", "n")),
    _to_and_fro,
    lambda dav: dav("COPY", "c", Destination=dav.url("c2")),
    lambda dav: _pull(dav, "p"),
    lambda dav: (_pull(dav, "q"), dav("DELETE", "q")),
)


def test_a_cut_upload_leaves_nothing_though_its_worker_was_killed(doomed: StorageSite) -> None:
    doomed.start()
    with Dav(doomed) as dav, dav.raw() as sock:
        before = set(doomed.temporaries())  # what killed fronts left
        sock.sendall(dav.head_of("PUT", "up", Content_Length="1000000") + b"x" * 1000)
        until(lambda: set(doomed.temporaries()) > before, "the upload began", 10)
        _kill(doomed, FILE_WORKER)
    until(lambda: set(doomed.temporaries()) == before, "it is gone", 10)


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
