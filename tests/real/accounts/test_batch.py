"""Batch verbs as a real account: the closed set, long values, clients and their provable end."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal

import pytest

from edged.errors import Busy, Conflict, Denied, Unavailable, UnknownOutcome
from tests.real.accounts.conftest import Site
from tests.support.accounts import AccountStack, processes
from tests.support.verbs import Alive, Echo, Hidden, Ran, Refuse, Run, Sweep
from tests.support.waiting import until, until_async


async def test_a_verb_runs_as_the_account_in_a_fixed_environment(site: Site, account: str) -> None:
    os.environ["SBATCH_PARTITION"] = "debug"
    try:
        async with site(batch=True).running() as stack:
            ran = await stack.client.batch.perform(stack.job(account, "j1"), Run("j1"), Ran, deadline_s=10)
    finally:
        del os.environ["SBATCH_PARTITION"]
    assert (ran.code, ran.uid) == (0, pwd.getpwnam(account).pw_uid)
    environment = dict(line.split("=", 1) for line in ran.output.splitlines())
    assert environment["LC_ALL"] == "C"
    assert environment["USER"] == account
    assert not [name for name in environment if name.startswith(("SBATCH", "PYTHON", "SSH"))]


async def test_only_published_verbs_under_the_right_grant(site: Site, account: str) -> None:
    async with site(batch=True).running() as stack:
        batch = stack.client.batch
        with pytest.raises(Unavailable, match="driver is not loaded"):
            await batch.perform(stack.job(account, "j1"), Hidden(), bool, deadline_s=10)
        with pytest.raises(Denied):
            await batch.perform(stack.job(account, "j1"), Run("j2"), Ran, deadline_s=10)
        with pytest.raises(Denied):
            await batch.perform(stack.standing(account), Run("j1"), Ran, deadline_s=10)
        assert len(await batch.perform(stack.standing(account), Sweep(3), list[str], deadline_s=10)) == 3


async def test_long_values_both_ways(site: Site, account: str) -> None:
    async with site(batch=True).running() as stack:
        batch, grant = stack.client.batch, stack.standing(account)
        rows = await batch.perform(grant, Sweep(10_000), list[str], deadline_s=30)
        assert len(rows) == 10_000
        assert await batch.perform(grant, Echo("x" * 3_000_000), int, deadline_s=30) == 3_000_000


async def test_typed_errors_travel_with_their_values(site: Site, account: str) -> None:
    async with site(batch=True).running() as stack:
        with pytest.raises(Busy) as caught:
            await stack.client.batch.perform(stack.standing(account), Refuse(), bool, deadline_s=10)
        error = caught.value
        assert (error.message, error.detail, error.retry_after_s, error.values["queue"]) == (
            "controller is busy",
            "slurmctld says so",
            7.0,
            "gpu",
        )


async def test_a_client_is_killed_at_its_deadline(site: Site, account: str) -> None:
    async with site(batch=True).running() as stack:
        grant = stack.job(account, "j1")
        ran = await stack.client.batch.perform(grant, Run("j1", sleep_s=50), Ran, deadline_s=0.3)
        assert (ran.code, ran.timed_out) == (-signal.SIGKILL, True)
        assert await stack.client.batch.perform(grant, Alive("j1"), bool, deadline_s=10) is False


async def running_client(stack: AccountStack, grant: bytes) -> asyncio.Future[Ran]:
    """A client in mid-flight, seen alive by its lock."""
    call = asyncio.ensure_future(stack.client.batch.perform(grant, Run("j1", sleep_s=50), Ran, deadline_s=60))

    async def alive() -> bool:
        return await stack.client.batch.perform(grant, Alive("j1"), bool, deadline_s=10)

    await until_async(alive, "the client's start", 10)
    return call


async def test_a_killed_worker_leaves_an_unknown_outcome_and_a_dead_client(site: Site, account: str) -> None:
    async with site(batch=True).running() as stack:
        assert stack.accountd is not None
        grant = stack.job(account, "j1")
        call = await running_client(stack, grant)
        with pytest.raises(Conflict):  # a second client under the same lock
            await stack.client.batch.perform(grant, Run("j1"), Ran, deadline_s=10)
        os.kill(processes(stack.accountd)[f"b-worker:{account}"[:15]], signal.SIGKILL)
        with pytest.raises(UnknownOutcome):
            await call

        async def dead() -> bool:
            return not await stack.client.batch.perform(grant, Alive("j1"), bool, deadline_s=10)

        await until_async(dead, "the client's proven end", 10)


async def test_a_killed_accountd_lets_a_running_client_finish_its_call(site: Site, account: str) -> None:
    async with site(batch=True).running() as stack:
        assert stack.accountd is not None
        keeper = stack.accountd
        grant = stack.job(account, "j1")
        await stack.client.batch.perform(grant, Run("j1"), Ran, deadline_s=10)
        call = asyncio.ensure_future(
            stack.client.batch.perform(grant, Run("j1", sleep_s=1.5), Ran, deadline_s=60)
        )

        async def alive() -> bool:
            return await stack.client.batch.perform(grant, Alive("j1"), bool, deadline_s=10)

        await until_async(alive, "the client's start", 10)
        old = processes(keeper)["edged-accountd"]
        os.kill(old, signal.SIGKILL)
        assert (await call).code == 0
        await asyncio.to_thread(
            until, lambda: processes(keeper).get("edged-accountd", old) != old, "another accountd", 10
        )
        assert (await stack.client.batch.perform(grant, Run("j1"), Ran, deadline_s=10)).code == 0


async def test_file_calls_and_batch_verbs_are_two_processes(site: Site, account: str) -> None:
    from edged.accounts.api import Place

    async with site(batch=True).running() as stack:
        assert stack.accountd is not None
        await stack.client.files.stat(stack.access(account), Place("cms", ""))
        await stack.client.batch.perform(stack.standing(account), Sweep(1), list[str], deadline_s=10)
        names = processes(stack.accountd)
        assert {f"f-worker:{account}"[:15], f"b-worker:{account}"[:15]} <= names.keys()
