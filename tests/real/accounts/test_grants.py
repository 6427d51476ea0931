"""Which grants accountd admits, who may present them, and what bans do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edged.accounts import start
from edged.accounts.accountd import MAX_FRONTS, MAX_FRONTS_OF_A_USER
from edged.accounts.api import SESSIONS, Place
from edged.errors import ConfigError, Denied, Unavailable
from edged.identity.grants import Ban
from edged.identity.words import Principal
from tests.real.accounts.conftest import FIRST, SECOND, Site
from tests.support.accounts import ALICE, AccountStack, configuration, is_root
from tests.support.waiting import until_async

ROOT = Place("cms", "")
BOB = Principal(issuer=ALICE.issuer, subject="bob", vo=ALICE.vo)
as_root = pytest.mark.skipif(not is_root(), reason="needs root: other accounts")


async def refused(stack: AccountStack, grant: bytes) -> str:
    with pytest.raises(Denied) as caught:
        await stack.client.files.stat(grant, ROOT)
    return caught.value.message


async def test_forged_broken_and_expired_grants(site: Site, account: str) -> None:
    async with site().running() as stack:
        good = stack.access(account)
        await stack.client.files.stat(good, ROOT)
        for broken in (b"", b"x", good[:-1], good[:64] + b"\x00" + good[65:], bytes(20_000)):
            assert "not a grant" in await refused(stack, broken)
        stack.key = Ed25519PrivateKey.generate()
        assert "not a grant" in await refused(stack, stack.access(account))
        stack.publish_key()  # a rotated key is read without a restart
        await stack.client.files.stat(stack.access(account), ROOT)
        assert await refused(stack, stack.access(account, life_s=-1.0)) == "grant expired"


async def test_a_grant_ends_while_its_handle_is_in_use(site: Site, account: str) -> None:
    async with site().running() as stack:
        short = stack.access(account, life_s=4.0)
        await stack.client.files.stat(short, ROOT)

        async def ended() -> bool:
            try:
                await stack.client.files.stat(short, ROOT)
            except Denied as error:
                return error.message == "grant expired"
            return False

        await until_async(ended, "the grant's end", 15)


async def test_accounts_that_are_not_on_the_list(site: Site, account: str) -> None:
    async with site().running() as stack:
        for other in ("nobody", "root" if account != "root" else "daemon", "no-such-account"):
            await refused(stack, stack.access(other))


@as_root
async def test_never_below_the_minimum_uid(site: Site) -> None:
    async with site(allowed=(FIRST.name, SECOND.name, "daemon", "root", "missing")).running() as stack:
        for system in ("daemon", "root"):
            assert await refused(stack, stack.access(system)) == "account below the minimum uid"
        assert await refused(stack, stack.access("missing")) == "no such account on this machine"


@as_root
async def test_another_user_is_not_heard(site: Site) -> None:
    """Code of an account, or of any user that is no front, gets its connection closed."""
    async with site().running() as stack:
        path = stack.config.runtime.run / "accountd.sock"
        script = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "s.connect(sys.argv[1])\n"
            "try:\n s.send(b'hello'); answer=s.recv(100)\nexcept OSError:\n answer=b''\n"
            "sys.exit(1 if answer else 0)"
        )
        done = await asyncio.to_thread(
            subprocess.run,
            ["/usr/bin/python3", "-c", script, str(path)],
            user=FIRST.uid,
            timeout=20,
            check=False,
        )
        assert done.returncode == 0
        await stack.client.files.stat(stack.access(FIRST.name), ROOT)


async def test_one_user_shuts_no_other_front_out(site: Site) -> None:
    """Half of the places is the most that the fronts of one user get."""
    async with site().running() as stack:
        await stack.client.files.stat(stack.access(FIRST.name), ROOT)
        connections = []
        for _ in range(MAX_FRONTS + 10):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            sock.connect(str(stack.config.runtime.run / "accountd.sock"))
            connections.append(sock)
            await asyncio.sleep(0.001)
        held = MAX_FRONTS_OF_A_USER - 1  # the site's own client has one
        await until_async(lambda: _count_open(connections, held), "the others are closed", 10)
        await stack.client.files.stat(stack.access(FIRST.name), ROOT)
        for sock in connections:
            sock.close()


async def _count_open(connections: list[socket.socket], wanted: int) -> bool:
    def is_open(sock: socket.socket) -> bool:
        try:
            return sock.recv(1) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    return sum(map(is_open, connections)) == wanted


async def test_two_accounts_are_two_users(site: Site, account: str, export: Path) -> None:
    if not is_root():
        pytest.skip("needs root: other accounts")
    async with site().running() as stack:
        files = stack.client.files
        temporary = await files.temporary(stack.access(FIRST.name), Place("cms", "mine/x"), parents=True)
        os.close(temporary.fd)
        await files.commit(
            stack.access(FIRST.name), temporary.place, Place("cms", "mine/x"), replace=False, durable=False
        )
        assert (export / "mine/x").stat().st_uid == FIRST.uid
        with pytest.raises(Denied):
            await files.open(stack.access(SECOND.name), Place("cms", "mine/x"))
        job = stack.job(FIRST.name, "j1")
        await files.mkdir(job, Place(SESSIONS, "j1"))
        sessions = stack.config.jobs.sessions if stack.config.jobs else Path()
        assert (sessions / FIRST.name).stat().st_mode & 0o777 == 0o700


async def test_garbage_is_fatal_to_the_connection_only(site: Site, account: str) -> None:
    async with site().running() as stack:
        path = str(stack.config.runtime.run / "accountd.sock")
        for garbage in (
            b"\x00",
            b"hello",
            os.urandom(500),
            b"\x93\xa5Admit\x01",
            b"\xc1" * 60000,
            b"\x94\xa6Forget\xa5files\xa1\xff\x01",
        ):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(10)
                await asyncio.to_thread(sock.connect, path)
                sock.send(garbage)
                with contextlib.suppress(ConnectionError):  # closed with our packet unread
                    assert await asyncio.to_thread(sock.recv, 100) == b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:  # a descriptor nobody asked for
            sock.settimeout(10)
            await asyncio.to_thread(sock.connect, path)
            socket.send_fds(sock, [b"x"], [0, 1, 2])
            with contextlib.suppress(ConnectionError):
                assert await asyncio.to_thread(sock.recv, 100) == b""
        await stack.client.files.stat(stack.access(account), ROOT)


async def test_a_ban_stops_access_at_once_and_leaves_jobs_their_end(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, access, job = stack.client.files, stack.access(account), stack.job(account, "j1")
        await files.stat(access, ROOT)
        await files.mkdir(job, Place(SESSIONS, "j1"))
        bob = stack.access(account, principal=BOB)
        await files.stat(bob, ROOT)
        began = time.monotonic()
        stack.feed.ban(Ban(id="b1", subject="alice", reason="test"))

        async def banned() -> bool:
            try:
                await files.stat(access, ROOT)
            except Denied as error:
                return error.message == "banned by the site"
            return False

        await until_async(banned, "the ban", 1.0, period_s=0.01)
        assert time.monotonic() - began < 1.0
        await files.stat(bob, ROOT)
        assert await files.list(job, Place(SESSIONS, "j1")) == []
        with pytest.raises(Denied):
            await files.temporary(job, Place(SESSIONS, "j1/input"))
        await files.remove(job, Place(SESSIONS, "j1"), recursive=True)
        stack.feed.lift("b1")

        async def lifted() -> bool:
            try:
                await files.stat(access, ROOT)
                await files.mkdir(job, Place(SESSIONS, "j1"), parents=True)
            except Denied:
                return False
            return True

        await until_async(lifted, "the ban's end", 5.0)


async def test_a_ban_that_keeps_jobs(site: Site, account: str) -> None:
    async with site().running() as stack:
        files, access, job = stack.client.files, stack.access(account), stack.job(account, "j1")
        await files.stat(access, ROOT)
        stack.feed.ban(Ban(id="b1", issuer=ALICE.issuer, keep_jobs=True))

        async def banned() -> bool:
            try:
                await files.stat(access, ROOT)
            except Denied:
                return True
            return False

        await until_async(banned, "the ban", 1.0, period_s=0.01)
        await files.mkdir(job, Place(SESSIONS, "j1"))


async def test_without_the_ban_feed_no_new_grant_is_admitted(site: Site, account: str) -> None:
    async with site().running() as stack:
        known = stack.access(account)
        await stack.client.files.stat(known, ROOT)
        stack.feed.beating = False

        async def cut_off() -> bool:
            try:
                await stack.client.files.stat(stack.access(account), ROOT)
            except Unavailable as error:
                return error.message == "revocations are not loaded"
            return False

        await until_async(cut_off, "refusal without a feed", 10)
        stack.feed.beating = True
        await stack.client.files.stat(stack.access(account), ROOT)


async def test_self_mode_refuses_a_second_account(tmp_path: Path) -> None:
    from edged.accounts.settings import own_name

    stack = AccountStack(configuration(tmp_path, [own_name()], mode="self"))
    async with stack.running():
        await stack.client.files.stat(stack.access(own_name()), ROOT)
        assert "one account" in await refused(stack, stack.access("cmsprd"))
    with pytest.raises(ConfigError, match="self"):
        start.start_accountd(configuration(tmp_path, ["someone"], mode="self"))


@pytest.mark.skipif(is_root(), reason="is root")
def test_without_root_accountd_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="self"):
        start.start_accountd(configuration(tmp_path, ["cmsprd"], mode="accountd"))


@as_root
def test_the_unit_serves_service_users_only(tmp_path: Path) -> None:
    """``python -m edged.accounts`` without a service user on this machine: root's own front is not heard."""
    config = tmp_path / "edged.toml"
    config.write_text(
        f'[site]\nname = "T"\n[runtime]\nstate = "{tmp_path}/state"\nrun = "{tmp_path}"\n'
        '[[issuer]]\nurl = "https://issuer.test/"\naudience = ["x"]\nvo = "cms"\n'
        '[[mapping]]\nissuer = "https://issuer.test/"\naccount = "edgedt1"\n'
    )
    unit = subprocess.Popen([sys.executable, "-m", "edged.accounts", str(config)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 15
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(10)
            while sock.connect_ex(str(tmp_path / "accountd.sock")) != 0:
                assert time.monotonic() < deadline
            with contextlib.suppress(ConnectionError):
                assert sock.recv(100) == b""
    finally:
        unit.terminate()
        assert unit.wait(10) == 0
