"""A front or a worker that somebody has taken over: what it can do to accountd, and to other accounts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edged.accounts import messages, packets
from edged.accounts.api import Place
from edged.accounts.channel import MAX_PACKETS, Channel
from edged.accounts.messages import Carries, WorkerKind, encode
from edged.accounts.worker import CHANNELS_OF_A_USER
from edged.errors import EdgeError, Unavailable
from tests.real.accounts.conftest import Site
from tests.support.accounts import AccountStack, processes
from tests.support.waiting import until

ROOT = Place("cms", "")


def pid_of(stack: AccountStack, name: str) -> int:
    assert stack.accountd is not None
    return processes(stack.accountd)[name[:15]]


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


@contextlib.contextmanager
def front(stack: AccountStack) -> Iterator[socket.socket]:
    """A front of the same user that speaks for itself."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(20)
        sock.connect(str(stack.config.runtime.run / "accountd.sock"))
        yield sock


def ask(sock: socket.socket, call: int, grant: bytes) -> None:
    sock.send(encode(messages.Admit(call, WorkerKind.FILES, grant, True)))


async def test_a_front_cannot_use_up_accountds_files(site: Site, account: str) -> None:
    """It asks for channel after channel and takes none; accountd may have few files open."""
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        await files.stat(grant, ROOT)
        pid = pid_of(stack, "edged-accountd")
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 30, used + 30))

        def flood() -> None:
            with front(stack) as sock, contextlib.suppress(OSError):
                for call in range(1, 2000):
                    ask(sock, call, grant)

        await asyncio.to_thread(flood)
        assert pid_of(stack, "edged-accountd") == pid
        await files.stat(stack.access(account), ROOT)


async def test_a_front_has_no_more_channels_than_it_can_have_connections(site: Site, account: str) -> None:
    """Each costs the account's worker a thread."""
    async with site().running() as stack:
        files, grant = stack.client.files, stack.access(account)
        await files.stat(grant, ROOT)
        worker = pid_of(stack, f"f-worker:{account}")

        def take_all() -> list[int]:
            held: list[int] = []
            with front(stack) as sock:
                for call in range(1, 3 * CHANNELS_OF_A_USER):
                    ask(sock, call, grant)
                    _, fds, _, _ = socket.recv_fds(sock, packets.MAX_PACKET, 1)
                    held += fds
            return held

        held = await asyncio.to_thread(take_all)
        try:
            until(lambda: threads_of(worker) <= CHANNELS_OF_A_USER + 20, "threads of old channels end", 20)
            assert len(held) > 2 * CHANNELS_OF_A_USER
        finally:
            for fd in held:
                os.close(fd)
        with contextlib.suppress(EdgeError):  # ours was the oldest of this user
            await files.stat(grant, ROOT)
        await files.stat(grant, ROOT)


async def test_many_grants_at_once_bring_one_channel(site: Site, account: str) -> None:
    async with site().running() as stack:
        grants = [stack.access(account) for _ in range(200)]
        await asyncio.gather(*(stack.client.files.stat(grant, ROOT) for grant in grants))
        assert len(stack.client._open) == 1


class Liar:
    """A worker's end of a channel."""

    def __init__(self) -> None:
        ours, self.sock = packets.pair()
        self.ended = False
        self.channel = Channel(ours, self._end)

    def _end(self, _channel: Channel) -> None:
        self.ended = True

    def call(self) -> asyncio.Task[object]:
        """A call of the front's; the first has number 1."""
        work = self.channel.call(messages.Stat, 1, "cms", b"", deadline_s=30, changes=False)
        return asyncio.ensure_future(work)

    def answer(self, call: int, carries: Carries = Carries.NOTHING, fd: int | None = None) -> None:
        packets.send(self.sock, encode(messages.Done(call, carries, msgspec.Raw(b"\xc0"))), fd)


async def test_a_worker_that_floods_its_front_has_its_turn_only() -> None:
    """Answers to nothing, faster than they are read, while one call is never answered."""
    liar = Liar()
    pending = liar.call()
    await asyncio.sleep(0)
    stop = threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                liar.answer(1 << 40)

    flooding = [threading.Thread(target=flood) for _ in range(2)]
    for thread in flooding:
        thread.start()
    try:
        async with asyncio.timeout(20):
            for _ in range(200):
                await asyncio.sleep(0)
    finally:
        stop.set()
        liar.channel.close()
        liar.sock.close()
        for thread in flooding:
            thread.join(10)
    with pytest.raises(Unavailable):
        await pending


async def test_packets_of_one_turn_are_counted() -> None:
    liar = Liar()
    pending = liar.call()
    await asyncio.sleep(0)
    sent = 0
    liar.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sent < 4 * MAX_PACKETS:
            liar.answer(1 << 40)
            sent += 1
    assert sent > MAX_PACKETS
    liar.channel._packets._read()
    with contextlib.suppress(BlockingIOError):
        liar.answer(1)  # there is room again, and it was not read to the end
    assert liar.channel._packets._sock.recv(packets.MAX_PACKET, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    await pending
    liar.channel.close()


@pytest.mark.parametrize("what", ["fifo", "device", "directory", "socket"])
async def test_a_worker_that_sends_no_file_is_cut_off(what: str, tmp_path: Path) -> None:
    liar = Liar()
    pending = liar.call()
    await asyncio.sleep(0)
    with _opened(what, tmp_path) as fd:
        liar.answer(1, Carries.FILE, fd)
    with pytest.raises(Unavailable):
        await pending
    assert liar.ended


@contextlib.contextmanager
def _opened(what: str, place: Path) -> Iterator[int]:
    if what == "fifo":
        os.mkfifo(place / "fifo")
    made = {
        "fifo": lambda: os.open(place / "fifo", os.O_RDWR),
        "device": lambda: os.open("/dev/zero", os.O_RDONLY),
        "directory": lambda: os.open(place, os.O_RDONLY),
        "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    }
    fd = made[what]()
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_long_answer_lies_in_memory() -> None:
    """A file may be of a file server of the account's own, which never answers."""
    fd = packets.in_memory(b"content")
    assert packets.read_memory(fd) == b"content"
    os.close(fd)
    with tempfile.TemporaryFile(dir="/var/tmp") as file, pytest.raises(packets.BrokenPeer):
        packets.read_memory(file.fileno())


def test_a_long_answer_is_not_longer_than_agreed() -> None:
    fd = packets.in_memory(b"")
    os.ftruncate(fd, 1 << 40)
    with pytest.raises(packets.BrokenPeer):
        packets.read_memory(fd)
    os.close(fd)
