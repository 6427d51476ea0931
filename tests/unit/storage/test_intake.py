"""Blocks of uploads: every byte at its place, and no block held longer than there is use for it."""

from __future__ import annotations

import asyncio
import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.storage.disk import Disk
from services.storage.intake import LARGEST_BLOCK, SMALLEST_BLOCK, Intake, Memory, settled

pytestmark = pytest.mark.asyncio

SOON_S = 10.0


class Pieces:
    """A body that comes in pieces; None among them: nothing is there yet, until ``go_on``."""

    def __init__(self, *pieces: bytes | None) -> None:
        self._pieces = list(pieces)
        self.waits = asyncio.Event()
        self.go_on = asyncio.Event()

    def receive(self, view: memoryview) -> int | None:
        if not self._pieces:
            return 0
        piece = self._pieces[0]
        if piece is None:
            return None
        count = min(len(view), len(piece))
        view[:count] = piece[:count]
        self._pieces[0] = piece[count:]
        if count == len(piece):
            self._pieces.pop(0)
        return count

    async def wait(self) -> None:
        self.waits.set()
        await self.go_on.wait()
        self._pieces.pop(0)
        self.waits.clear()
        self.go_on.clear()


@pytest.fixture
def disk() -> Iterator[Disk]:
    found = Disk("test", 2)
    yield found
    found.shutdown()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    found = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield found
    os.close(found)


async def _all(intake: Intake, body: Pieces) -> None:
    while await intake.more(body):
        pass


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, LARGEST_BLOCK, LARGEST_BLOCK + 1, 3_000_000])
@pytest.mark.parametrize("expected", [True, False])
async def test_the_bytes_and_their_digest(fd: int, disk: Disk, size: int, expected: bool) -> None:
    rng, memory = random.Random(size), Memory(8 << 20)
    data = rng.randbytes(size)
    pieces, at = [], 0
    while at < size:
        pieces.append(data[at : at + rng.choice([1, 1000, 16384, 300_000])])
        at += len(pieces[-1])
    intake = Intake(fd, disk, ("adler32",), memory, at=10, expected=size if expected else None)
    await _all(intake, Pieces(*pieces))
    found = await intake.finish()
    assert found == {"adler32": zlib.adler32(data).to_bytes(4, "big")}
    assert intake.size == size
    assert os.pread(fd, size + 1, 10) == data
    await asyncio.sleep(0)  # the last block is given back by a callback
    assert memory.held == 0


async def test_who_waits_with_nothing_holds_nothing(fd: int, disk: Disk) -> None:
    memory, body = Memory(8 << 20), Pieces(None, b"x")
    intake = Intake(fd, disk, ("adler32",), memory)
    waiting = asyncio.create_task(intake.more(body))
    async with asyncio.timeout(SOON_S):
        await body.waits.wait()
        assert memory.held == 0
        body.go_on.set()
        assert await waiting == 1
    assert memory.held > 0
    await settled(intake)
    assert memory.held == 0


async def test_a_silent_client_holds_its_block_for_a_moment(fd: int, disk: Disk) -> None:
    memory, body = Memory(8 << 20), Pieces(b"abc", None, b"def")
    intake = Intake(fd, disk, ("adler32",), memory)
    assert await intake.more(body) == 3
    waiting = asyncio.create_task(intake.more(body))
    async with asyncio.timeout(SOON_S):
        await body.waits.wait()
        assert memory.held > 0
        while memory.held:
            await asyncio.sleep(0.01)
        assert os.pread(fd, 10, 0) == b"abc"
        body.go_on.set()
        assert await waiting == 3
        assert await intake.finish() == {"adler32": zlib.adler32(b"abcdef").to_bytes(4, "big")}
    assert os.pread(fd, 10, 0) == b"abcdef"


async def test_blocks_are_small_when_many_are_held_or_little_is_expected() -> None:
    memory = Memory(4 * LARGEST_BLOCK)
    held = [memory.take(1 << 30) for _ in range(4)]
    assert [len(block) for block in held] == [LARGEST_BLOCK, LARGEST_BLOCK, SMALLEST_BLOCK, SMALLEST_BLOCK]
    for block in held:
        memory.give(block)
    assert memory.held == 0
    assert len(memory.take(SMALLEST_BLOCK)) == SMALLEST_BLOCK


async def test_two_uploads_never_share_a_block() -> None:
    memory = Memory(64 << 20)
    first, second = memory.take(1 << 20), memory.take(1 << 20)
    first[:3], second[:3] = b"one", b"two"
    assert bytes(first[:3]) == b"one"
    memory.give(first)
    third = memory.take(1 << 20)
    third[:3] = b"3rd"
    assert bytes(second[:3]) == b"two"


async def test_a_block_whose_thread_may_go_on_is_not_used_again() -> None:
    memory = Memory(64 << 20)
    block = memory.take(1 << 20)
    block[:4] = b"keep"
    memory.forget(block)
    other = memory.take(1 << 20)
    other[:4] = b"else"
    assert bytes(block[:4]) == b"keep"


async def test_a_byte_at_a_time_leaves_others_their_turn(fd: int, disk: Disk) -> None:
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    turn()
    intake = Intake(fd, disk, ("adler32",), Memory(8 << 20))
    await _all(intake, Pieces(*[b"x"] * 10_000))
    assert turns > 100
    await intake.finish()


async def test_what_the_disk_says_is_told(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "only").write_bytes(b"")
    reading = os.open(tmp_path / "only", os.O_RDONLY)
    memory = Memory(8 << 20)
    intake = Intake(reading, disk, ("adler32",), memory)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            await _all(intake, Pieces(bytes(4 * LARGEST_BLOCK)))
    finally:
        await settled(intake)
        os.close(reading)
    assert memory.held == 0
