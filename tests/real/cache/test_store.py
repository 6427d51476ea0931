"""The store: what survives, what is found damaged, what goes when there is no room, and several processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cache import eviction
from services.cache.eviction import Evictor
from services.cache.names import ObjectName
from services.cache.store import BLOCK, Store
from services.cache.usage import Usage
from tests.real.cache.site import CATALOG, FAST, Client, cache
from tests.real.cache.test_objects import LARGE, LARGE_PATH, truth
from tests.support.stratum import DATA, REPOSITORY, Fault, Say, Stratum, unused_port

NAME = ObjectName(CATALOG.removeprefix("data/").removesuffix("C"))
LARGE_NAME = ObjectName(LARGE_PATH.removeprefix("data/"))


def stalling(go_on: asyncio.Event) -> Fault:
    def fault(say: Say) -> Say:
        say.stall_after, say.go_on = len(say.body) // 2, go_on
        return say

    return fault


async def test_objects_outlive_a_restart(tmp_path: Path) -> None:
    async with Stratum().running() as good:
        good.objects[LARGE_PATH] = LARGE
        for _ in range(2):
            async with cache(tmp_path, [good]) as site:
                assert (await site.get(CATALOG)).body == truth(CATALOG)
                assert (await site.get(LARGE_PATH)).body == LARGE
        assert good.asked.total() == 2


@pytest.mark.parametrize(
    ("path", "name"), [(CATALOG, NAME), (LARGE_PATH, LARGE_NAME)], ids=["small", "large"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
async def test_a_file_a_power_cut_damaged_is_found_and_fetched_anew(
    tmp_path: Path, path: str, name: ObjectName, damage: str
) -> None:
    async with Stratum().running() as good:
        good.objects[LARGE_PATH] = LARGE
        async with cache(tmp_path, [good]) as site:
            right = (await site.get(path)).body
            file = site.service.store.path(name)
        data = bytearray(right)
        data[100] ^= 1
        file.write_bytes({"flip": bytes(data), "cut": right[:1000], "empty": b""}[damage])
        os.utime(file, (1, 1))  # last verified before the machine started
        async with cache(tmp_path, [good]) as site:
            assert (await site.get(path)).body == right
        assert good.asked.total() == 2


def test_killed_during_a_fill_nothing_wrong_remains(tmp_path: Path) -> None:
    asyncio.run(_killed_during_a_fill(tmp_path))


async def _killed_during_a_fill(tmp_path: Path) -> None:
    async with Stratum().running() as slow:
        slow.objects[LARGE_PATH] = LARGE
        slow.fault(LARGE_PATH, stalling(asyncio.Event()))
        process, address = await started(tmp_path, slow, workers=1)
        client = Client(address)
        await client.send(f"GET /cvmfs/{REPOSITORY}/{LARGE_PATH} HTTP/1.1\r\nHost: s\r\n\r\n".encode())
        assert (await client.head())[0] == 200
        process.kill()
        await process.wait()
        assert list((tmp_path / "store/parts").iterdir())
        slow.fault(LARGE_PATH, None)
        async with cache(tmp_path, [slow]) as site:
            assert (await site.get(LARGE_PATH)).body == LARGE


def test_two_workers_share_listener_and_store(tmp_path: Path) -> None:
    asyncio.run(_two_workers(tmp_path))


async def _two_workers(tmp_path: Path) -> None:
    async with Stratum().running() as slow:
        go_on = asyncio.Event()
        slow.objects[LARGE_PATH] = LARGE
        slow.fault(LARGE_PATH, stalling(go_on))
        process, address = await started(tmp_path, slow, workers=2)
        try:
            clients = [Client(address) for _ in range(40)]
            target = f"/cvmfs/{REPOSITORY}/{LARGE_PATH}"
            asking = [asyncio.create_task(client.get(target)) for client in clients]
            await slow.until_asked(1)
            go_on.set()
            assert {(await one).body for one in asking} == {LARGE}
            assert slow.asked.total() == 1
        finally:
            process.terminate()
            await process.wait()


async def started(
    directory: Path, stratum: Stratum, *, workers: int
) -> tuple[asyncio.subprocess.Process, str]:
    """`edged run cache` as its own process."""
    port, observe = unused_port(), unused_port()
    config = directory / "edged.toml"
    config.write_text(
        f'[site]\nname = "TEST"\n[runtime]\nrun = "{directory}/run"\nstate = "{directory}"\n'
        "stop_deadline_s = 2\n"
        f'[log]\nlevel = "warning"\n[observe.services]\ncache = "127.0.0.1:{observe}"\n'
        f'[cache]\nlisten = ["127.0.0.1:{port}"]\nstore = "{directory}/store"\n'
        f"workers = {workers}\ndisk_free = 0\n"
        f'[cache.upstream]\nstall_s = 10\n[[cache.repository]]\nname = "{REPOSITORY}"\n'
        f'stratums = ["{stratum.url}"]\nkeys = ["{DATA}/master.pub"]\n'
    )
    argv = (sys.executable, "-m", "edged", "run", "cache", "--config", str(config))
    process = await asyncio.create_subprocess_exec(*argv)
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None
            probe = Client(f"127.0.0.1:{port}")
            try:
                if (await probe.get(f"/cvmfs/{REPOSITORY}/{CATALOG}")).status == 200:
                    break
            except OSError:
                await asyncio.sleep(0.05)
            finally:
                probe.close()
    slow_start = stratum.asked
    slow_start.clear()
    return process, f"127.0.0.1:{port}"


async def test_two_processes_that_miss_the_same_object_fetch_it_once(tmp_path: Path) -> None:
    async with Stratum().running() as slow:
        go_on = asyncio.Event()
        slow.objects[LARGE_PATH] = LARGE
        slow.fault(LARGE_PATH, stalling(go_on))
        options = {"workers": 2, "upstream": {**FAST, "stall_s": 10}}
        async with (
            cache(tmp_path, [slow], admin=str(tmp_path / "a"), **options) as one,
            cache(tmp_path, [slow], admin=str(tmp_path / "b"), **options) as two,
        ):
            first = asyncio.create_task(one.get(LARGE_PATH))
            await slow.until_asked(1)
            other = two.client()
            await other.send(f"GET {two.url(LARGE_PATH)} HTTP/1.1\r\nHost: s\r\n\r\n".encode())
            status, headers = await other.head()
            early = await other.some(100_000)  # the other process's file, while it grows
            go_on.set()
            rest = await other.rest(status, headers, len(LARGE) - len(early))
            assert early + rest.body == LARGE == (await first).body
            assert (await two.get(CATALOG)).body == (await one.get(CATALOG)).body
            assert slow.asked[f"/cvmfs/{REPOSITORY}/{LARGE_PATH}"] == 1


HOLDER = """
import sys, time
from pathlib import Path
from services.cache.names import ObjectName
from services.cache.ticket import take
ticket = take(Path(sys.argv[1]), ObjectName(sys.argv[2]))
print(type(ticket).__name__, flush=True)
time.sleep(60)
"""


async def test_a_fetch_whose_process_was_killed_is_taken_over(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good], workers=2) as site:
        argv = (sys.executable, "-c", HOLDER, str(site.service.store.tickets), NAME.key)
        root = Path(__file__).parents[3]
        holder = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, cwd=root)
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"Ticket\n"
        asking = asyncio.create_task(site.get(CATALOG))
        done, _ = await asyncio.wait([asking], timeout=0.3)
        assert not done
        assert good.asked.total() == 0
        holder.send_signal(signal.SIGKILL)
        await holder.wait()
        assert (await asking).body == truth(CATALOG)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    where = tmp_path / "small"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.root
async def test_a_full_disk_costs_hits_not_answers(tmp_path: Path, small_disk: Path) -> None:
    async with Stratum().running() as good:
        good.objects[LARGE_PATH] = LARGE
        async with cache(tmp_path, [good], store=str(small_disk / "store")) as site:
            (small_disk / "filler").write_bytes(bytes(700 << 10))
            for _ in range(2):
                assert (await site.get(LARGE_PATH)).body == LARGE
            assert good.asked.total() == 2
            assert (await site.get(CATALOG)).body == truth(CATALOG)


def fill(store: Store, count: int, size: int = 100) -> list[ObjectName]:
    names = []
    for number in range(count):
        body = number.to_bytes(8) * (size // 8)
        names.append(ObjectName.of(hashlib.sha1(body).hexdigest()))
        store.put(names[-1], body)
        os.utime(store.path(names[-1]), (number, number))
    return names


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    names = fill(store, 100)
    store.touch({names[0].key})
    evictor = Evictor(store, limit=50 * BLOCK, reserve=0)
    while evictor.needed():
        evictor.round()
    left = [number for number, name in enumerate(names) if store.path(name).exists()]
    assert left[0] == 0
    assert left[1:] == list(range(100 - len(left) + 1, 100))
    assert store.usage.total() == len(left) * BLOCK <= 50 * BLOCK


def test_only_one_process_evicts_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 20)
    one, two = (Evictor(store, limit=BLOCK, reserve=0) for _ in range(2))
    import fcntl

    fcntl.flock(one._lock, fcntl.LOCK_EX)
    assert two.round().files == 0
    one.close()
    assert two.round().files > 0


def test_usage_is_the_sum_over_processes_and_survives_them(tmp_path: Path) -> None:
    one, two = Usage(tmp_path), Usage(tmp_path)
    one.add(100)
    two.add(-30)
    assert one.total() == two.total() == 70
    one.close()
    three = Usage(tmp_path)
    three.add(5)
    assert two.total() == 75


def test_a_count_corrects_what_drifted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 10)
    store.usage.add(12345)
    assert eviction.count(store) == (10, 10 * BLOCK)
    assert store.usage.total() == 10 * BLOCK
