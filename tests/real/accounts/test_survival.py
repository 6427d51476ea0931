"""What happens when a part is killed, goes idle, or is asked too much."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from edged.accounts import start
from edged.accounts.api import Place
from edged.accounts.messages import WorkerKind
from edged.errors import Denied, EdgeError, Unavailable, UnknownOutcome
from edged.identity.grants import Ban
from tests.real.accounts.conftest import Site
from tests.support.accounts import AccountStack, processes
from tests.support.waiting import until, until_async

ROOT = Place("cms", "")


def pid_of(stack: AccountStack, name: str) -> int:
    assert stack.accountd is not None
    return processes(stack.accountd)[name[:15]]


async def test_a_killed_worker_is_started_again(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        for _ in range(3):
            await files.stat(grant, ROOT)
            os.kill(pid_of(stack, f"f-worker:{account}"), signal.SIGKILL)
            met = 0
            for _ in range(10):
                try:
                    await files.stat(grant, ROOT)
                except Unavailable:
                    met += 1
            assert met <= 1
            await files.stat(grant, ROOT)


async def test_the_request_that_met_a_dead_worker_gets_a_typed_error(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        await files.stat(grant, ROOT)
        pid = pid_of(stack, f"f-worker:{account}")
        os.kill(pid, signal.SIGSTOP)
        look = asyncio.ensure_future(files.stat(grant, ROOT))
        change = asyncio.ensure_future(files.mkdir(grant, Place("cms", "d")))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            await look
        with pytest.raises(UnknownOutcome):
            await change


async def test_accountd_killed_at_any_point_of_a_stream(site: Site, account: str, export: Path) -> None:
    """Typed errors only; what was acknowledged is there; afterwards everything works."""
    async with site().running() as stack:
        files = stack.client.files
        acknowledged: set[str] = set()

        async def write(number: int) -> None:
            name, grant = f"file-{number}", stack.access(account)
            try:
                temporary = await files.temporary(grant, Place("cms", name))
                os.close(temporary.fd)
                await files.commit(grant, temporary.place, Place("cms", name), replace=False, durable=False)
            except EdgeError:
                return
            acknowledged.add(name)

        for number in range(60):
            if number % 20 == 10:
                os.kill(pid_of(stack, "edged-accountd"), signal.SIGKILL)
                await asyncio.to_thread(
                    until, lambda: "edged-accountd" in _names(stack), "accountd again", 10
                )
            await asyncio.gather(*(write(number * 5 + more) for more in range(5)))
        assert len(acknowledged) > 200
        assert acknowledged <= set(os.listdir(export))
        await files.stat(stack.access(account), ROOT)


def _names(stack: AccountStack) -> set[str]:
    assert stack.accountd is not None
    return set(processes(stack.accountd))


async def test_after_a_restart_bans_hold_before_any_grant(site: Site, account: str) -> None:
    async with site().running() as stack:
        grant = stack.access(account)
        await stack.client.files.stat(grant, ROOT)
        stack.feed.ban(Ban(id="b1", subject="alice"))
        os.kill(pid_of(stack, "edged-accountd"), signal.SIGKILL)

        async def denied() -> bool:
            try:
                await stack.client.files.stat(grant, ROOT)
            except Denied:
                return True
            except Unavailable:
                return False
            return False  # still answered by the old worker, which ends

        await until_async(denied, "refusal", 5)
        for _ in range(20):
            with pytest.raises(Denied):
                await stack.client.files.stat(stack.access(account), ROOT)


async def test_an_idle_worker_ends_and_comes_back_unnoticed(site: Site, account: str) -> None:
    async with site(idle_s=0.3).running() as stack:
        grant = stack.access(account)
        await stack.client.files.stat(grant, ROOT)
        name = f"f-worker:{account}"[:15]
        await asyncio.to_thread(until, lambda: name not in _names(stack), "the idle worker's end", 10)
        for _ in range(200):  # across several ends
            await stack.client.files.stat(grant, ROOT)
            await asyncio.sleep(0.005)


async def test_nothing_is_left_after_stop(site: Site, account: str) -> None:
    async with site().running() as stack:
        assert stack.accountd is not None
        await stack.client.files.stat(stack.access(account), ROOT)
        pids = [stack.accountd.pid, *processes(stack.accountd).values()]
        accountd = stack.accountd
        await asyncio.to_thread(accountd.stop)
        await asyncio.to_thread(until, lambda: not any(_alive(pid) for pid in pids), "all ended", 10)
        with pytest.raises((Unavailable, UnknownOutcome)):
            await stack.client.files.stat(stack.access(account), ROOT)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_second_accountd_is_refused(site: Site, account: str) -> None:
    async with site().running() as stack:
        with pytest.raises(Unavailable):
            await asyncio.to_thread(start.start_accountd, stack.config)
        await stack.client.files.stat(stack.access(account), ROOT)


async def test_a_front_that_is_busy_gets_its_answers_later(site: Site, account: str) -> None:
    """More admissions at once than a socket holds answers: none is lost, and nobody is cut off."""
    async with site().running() as stack:
        files, first = stack.client.files, stack.access(account)
        await files.stat(first, ROOT)
        grants = [stack.access(account) for _ in range(2000)]
        connection = stack.client._connect()  # a second one, whose answers nobody reads meanwhile
        answers = [connection.admit(grant, WorkerKind.FILES) for grant in grants]
        until(lambda: not _at_work(stack), "accountd has answered what the socket takes", 20, 0.2)
        held = await asyncio.gather(*answers)
        assert len({one.handle for one in held}) == len(grants)
        await files.stat(first, ROOT)


def _at_work(stack: AccountStack) -> bool:
    """Whether accountd is still at work: its CPU time moves."""
    assert stack.accountd is not None
    pid = processes(stack.accountd)["edged-accountd"]
    stat = Path(f"/proc/{pid}/stat")
    before = stat.read_text().split()[13:15]
    end = time.monotonic() + 0.1
    until(lambda: time.monotonic() > end, "a moment", 5)
    return stat.read_text().split()[13:15] != before
