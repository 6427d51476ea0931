"""The receiving end of a file: blocks filled by the network, then digested and written one behind it.

A block is held while there is something in it, and for a quarter of a second of silence at most: uploads that
wait for their clients hold nothing. Benches: tests/bench/storage_large.py, storage_uploads.py.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Sequence

from edged.http.body import Body
from services.storage import digests
from services.storage.disk import Disk

SMALLEST_BLOCK, LARGEST_BLOCK = 64 * 1024, 512 * 1024  # see _put
SMALL = 64 * 1024  # written without a thread: goes to the page cache
SPARE = {SMALLEST_BLOCK: 64, LARGEST_BLOCK: 32}  # blocks kept for the next who needs one
SILENCE_S = 0.25
TURN = 64  # pieces taken, however small, before others have their turn


class Memory:
    """The blocks of all uploads. ``limit`` bytes are shared: above half of it only small ones are given."""

    __slots__ = ("_comfortable", "_spare", "held")

    def __init__(self, limit: int) -> None:
        self.held = 0
        self._comfortable = limit // 2
        self._spare: dict[int, list[mmap.mmap]] = {size: [] for size in SPARE}

    def take(self, wanted: int) -> memoryview:
        """A block for ``wanted`` more bytes; large ones are cheapest, small ones when many come in at once."""
        large = wanted > SMALLEST_BLOCK and self.held + LARGEST_BLOCK <= self._comfortable
        size = LARGEST_BLOCK if large else SMALLEST_BLOCK
        self.held += size
        spare = self._spare[size]
        # mapped: what is given back is the system's again, however the heap looks
        return memoryview(spare.pop() if spare else mmap.mmap(-1, size))

    def give(self, block: memoryview) -> None:
        """Nobody uses it any more."""
        size = self.forget(block)
        if len(self._spare[size]) < SPARE[size] and isinstance(block.obj, mmap.mmap):
            self._spare[size].append(block.obj)

    def forget(self, block: memoryview) -> int:
        """It is not to be used again, because a thread may still read it; its size."""
        self.held -= len(block)
        return len(block)


class Intake:
    """The receiving end of one file. ``settle`` ends its use, also when it failed."""

    def __init__(
        self,
        fd: int,
        disk: Disk,
        algorithms: Sequence[str],
        memory: Memory,
        *,
        at: int = 0,
        expected: int | None = None,
    ) -> None:
        """``at``: where in the file the first byte belongs. ``expected``: bytes in all, where announced."""
        self.size = 0
        self._at = at
        self._fd = fd
        self._disk = disk
        self._digests = digests.Several(algorithms)
        self._memory = memory
        self._expected = expected
        self._block: memoryview | None = None
        self._filled = 0
        self._pieces = 0
        self._writing: asyncio.Future[None] | None = None

    async def more(self, body: Body) -> int:
        """Take what has come, a block at most; 0 at the end. Waits while the disk is behind."""
        self._pieces += 1
        if self._pieces % TURN == 0:  # a client may send a byte a chunk
            await asyncio.sleep(0)
        while self.size != self._expected:
            block = await self._room()
            got = body.receive(block[self._filled :])
            if got is not None:
                self.size += got
                self._filled += got
                return got
            await self._wait(body)
        return 0

    async def _wait(self, body: Body) -> None:
        """For the network, with a block only while there is something in it, and not for long."""
        if not self._filled:
            self.drop()
            await body.wait()
            return
        silence = asyncio.get_running_loop().call_later(SILENCE_S, self._write_if_idle)
        try:
            await body.wait()
        finally:
            silence.cancel()

    async def finish(self) -> dict[str, bytes]:
        """All bytes are in: write the rest, and tell the digests."""
        if self._filled <= SMALL and self._writing is None and await self._disk.is_local(self._fd):
            if self._block is not None:
                self._put(self._block[: self._filled])
        else:
            await self._flush()
            await self.settle()
        self.drop()
        return self._digests.results()

    async def settle(self) -> None:
        """Until no thread uses the descriptor any more. Raises what the disk said."""
        while self._writing is not None:
            writing, self._writing = self._writing, None
            await asyncio.shield(writing)

    def drop(self) -> None:
        """Forget what is not written: the upload failed, or all of it is."""
        if self._block is not None:
            self._memory.give(self._block)
        self._block, self._filled = None, 0

    async def _room(self) -> memoryview:
        """A block that is not full."""
        if self._block is not None and self._filled == len(self._block):
            await self._flush()
        if self._block is None:
            wanted = LARGEST_BLOCK if self._expected is None else self._expected - self.size
            self._block, self._filled = self._memory.take(wanted), 0
        return self._block

    async def _flush(self) -> None:
        await self.settle()
        if self._filled:
            self._write()
            await asyncio.sleep(0)  # a client may be as fast as we are: others have their turn

    def _write_if_idle(self) -> None:
        if self._writing is None or (self._writing.done() and self._writing.exception() is None):
            self._write()

    def _write(self) -> None:
        """Hand the block to a thread."""
        block, memory = self._block, self._memory
        assert block is not None
        filled, self._block, self._filled = self._filled, None, 0
        writing = asyncio.ensure_future(self._disk.run((self._fd,), self._put, block[:filled]))
        # cancelled: its thread may go on
        writing.add_done_callback(
            lambda done: memory.forget(block) if done.cancelled() else memory.give(block)
        )
        self._writing = writing

    def _put(self, data: memoryview) -> None:
        """In one write of middling length (ext4 on Linux 6.18, CPU s/GiB: .21 in 64 KiB, .17 in 512 KiB, .17 to .5
        in 1 MiB; 2.3 as a vector of the network's short pieces)."""
        self._digests.update(data)
        self._at = write_all(self._fd, data, self._at)


async def settled(intake: Intake) -> None:
    """The file may become visible or go only when no thread writes to it."""
    intake.drop()
    try:
        await intake.settle()
    except OSError:
        return  # already reported, or the upload failed for another reason


def write_all(fd: int, data: bytes | memoryview, at: int) -> int:
    """Write all of it from offset ``at``; the offset after it. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        at += done
        view = view[done:]
    return at
