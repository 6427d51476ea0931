"""What a third-party copy is: its order, its progress, its end; and the seam of whoever carries it out.

An order is plain data, so that an executor may hand it to another process or a batch job.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import msgspec

from services.storage.exchange import Exchange
from services.storage.transfers import Transfer


class Direction(StrEnum):
    """Which way the bytes go, seen from here."""

    PULL = "pull"
    PUSH = "push"


class Verify(StrEnum):
    """What a missing or differing checksum of the partner means (RequireChecksumVerification)."""

    NEVER = "never"  # "false"
    IF_KNOWN = "if-known"  # no header: compared when the partner tells one
    ALWAYS = "always"  # "true": no checksum is a failure


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One copy. ``headers`` go to the partner's origin only; ``replace``: the target may be overwritten."""

    direction: Direction
    url: str
    headers: dict[str, str]
    path: str
    replace: bool
    exists: bool
    verify: Verify
    streams: int = 1
    ask_first: bool = True  # HEAD before GET; "Copy-Flags: NoHead" says that it would be refused
    client: str = ""  # ClientInfo, for the log


@dataclass(slots=True)
class Progress:
    """Bytes so far, and the connections that carry them. Written by the executor, read for markers."""

    moved: int = 0
    connections: set[str] = field(default_factory=set)
    transfer: Transfer | None = None

    def add(self, count: int) -> None:
        """Some more bytes; negative when they must come again."""
        self.moved += count
        if self.transfer is not None:
            self.transfer.moved += count


class Executor(Protocol):
    """Carries out copies. ``run`` returns when the copy is whole, raises EdgeError, or is cancelled."""

    async def run(self, order: Order, exchange: Exchange, progress: Progress) -> None: ...


@dataclass(slots=True)
class Copying:
    """A copy that was started: its progress, and the task that ends with it."""

    progress: Progress
    task: asyncio.Task[None]

    def cancel(self) -> None:
        """Stop it; the executor cleans up."""
        self.task.cancel()
