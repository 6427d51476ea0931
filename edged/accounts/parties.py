"""Whom accountd speaks with: fronts, workers, and the admissions that a worker has not confirmed yet."""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass, field

from edged.accounts.messages import WorkerKind
from edged.identity.grants import Grant

WorkerKey = tuple[str, WorkerKind]


@dataclass(slots=True, eq=False)
class Front:
    """One connection of a front, and the channels it was given."""

    sock: socket.socket
    uid: int
    channels: dict[WorkerKey, int] = field(default_factory=dict)
    outbox: deque[tuple[bytes, socket.socket | None]] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Waiting:
    """An admission that the worker has not confirmed yet."""

    front: Front
    call: int
    grant: Grant
    handle: int
    wants_channel: bool
    since: float
    tries: int = 0
    theirs: socket.socket | None = None  # the front's end of a new channel


@dataclass(slots=True, eq=False)
class Worker:
    """One account's worker process, as seen over its control socket."""

    key: WorkerKey
    sock: socket.socket
    pid: int = 0
    waiting: dict[int, Waiting] = field(default_factory=dict)
    outbox: deque[tuple[bytes, socket.socket | None, float]] = field(default_factory=deque)
