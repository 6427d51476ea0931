"""Opening files as an account: a worker's descriptor beside ``run_in_executor(os.open)``, in one run.

    python -m tests.bench.accounts_open [--count 5000] [--at-once 1 16] [--undisturbed]

Prints wall time and CPU per open (all processes and threads counted) and their ratio to the peer, and the floor:
one byte to a forked process and back over the same kind of socket. As root the worker is another account; otherwise
self mode.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from edged.accounts import packets
from edged.accounts.api import Place
from edged.config import parse
from tests.support.accounts import AccountStack, is_root, own_account
from tests.support.cpu import undisturbed
from tests.support.local_accounts import CMSPRD, ensure

Open = Callable[[int], Awaitable[int]]


@dataclass
class Figure:
    """Per open, in microseconds."""

    wall: float
    cpu: float


async def measure(open_one: Open, count: int, at_once: int, pids: list[int]) -> Figure:
    async def run(first: int) -> None:
        for number in range(first, count, at_once):
            os.close(await open_one(number))

    cpu, wall = cpu_s(pids), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for first in range(at_once):
            tasks.create_task(run(first))
    wall = time.perf_counter() - wall
    return Figure(wall / count * 1e6, (cpu_s(pids) - cpu) / count * 1e6)


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of all threads of these processes, as the scheduler counted them."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def family(pid: int) -> list[int]:
    """``pid`` and all processes below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


async def bench(count: int, levels: list[int], rounds: int, scratch: Path) -> None:
    account = CMSPRD.name if is_root() else own_account()
    if is_root():
        ensure()
    root = scratch / "export"
    root.mkdir()
    for number in range(100):
        (root / f"file-{number}").write_bytes(b"x")
    stack = AccountStack(_config(scratch, root, account))
    loop = asyncio.get_running_loop()
    async with stack.running():
        grant = stack.access(account)
        places = [Place("cms", f"file-{number}") for number in range(100)]
        paths = [str(root / f"file-{number}") for number in range(100)]

        async def worker(number: int) -> int:
            return (await stack.client.files.open(grant, places[number % 100])).fd

        async def executor(number: int) -> int:
            return await loop.run_in_executor(None, os.open, paths[number % 100], os.O_RDONLY | os.O_CLOEXEC)

        assert stack.accountd is not None
        os.close(await worker(0))
        pids = [os.getpid(), *family(stack.accountd.pid)]
        for at_once in levels:
            ours: tuple[list[Figure], list[Figure]] = ([], [])
            for one in (worker, executor):
                await measure(one, count // 10, at_once, pids)
            for _ in range(rounds):
                for one, figures in zip((worker, executor), ours, strict=True):
                    figures.append(await measure(one, count, at_once, pids))
            _print(at_once, *(sorted(f, key=lambda x: x.wall)[len(f) // 2] for f in ours))


def there_and_back(count: int) -> float:
    """Microseconds of two wake-ups with nothing done between them: no open by another process can take less."""
    ours, theirs = packets.pair()
    child = os.fork()
    if child == 0:
        ours.close()
        while data := theirs.recv(1):
            theirs.send(data)
        os._exit(0)
    theirs.close()
    with ours:
        began = time.perf_counter()
        for _ in range(count):
            ours.send(b"x")
            ours.recv(1)
        took = time.perf_counter() - began
    os.waitpid(child, 0)
    return took / count * 1e6


def _print(at_once: int, ours: Figure, peer: Figure) -> None:
    print(
        f"{at_once:3} at once: worker {ours.wall:6.1f} us wall {ours.cpu:6.1f} us CPU   "
        f"executor {peer.wall:6.1f} us wall {peer.cpu:6.1f} us CPU   "
        f"ratio {ours.wall / peer.wall:.2f} wall {ours.cpu / peer.cpu:.2f} CPU"
    )


def _config(scratch: Path, root: Path, account: str):  # type: ignore[no-untyped-def]
    return parse(
        {
            "site": {"name": "BENCH"},
            "runtime": {"state": str(scratch / "state"), "run": str(scratch / "run")},
            "accounts": {"mode": "accountd" if is_root() else "self"},
            "issuer": [{"url": "https://issuer.test/", "audience": ["bench"], "vo": "cms"}],
            "mapping": [{"issuer": "https://issuer.test/", "account": account}],
            "storage": {"export": [{"prefix": "/cms", "root": str(root), "vo": "cms"}]},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--undisturbed", action="store_true", help="before all other work on the machine")
    asked = parser.parse_args()
    if asked.undisturbed:
        undisturbed()
    print(f"there and back between two processes: {there_and_back(asked.count):.1f} us wall")
    scratch = Path(tempfile.mkdtemp(prefix="edged-bench-"))
    scratch.chmod(0o755)
    try:
        uvloop.run(bench(asked.count, asked.at_once, asked.rounds, scratch))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
