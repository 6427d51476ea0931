"""Every message between front, accountd, zygote and worker: a closed set. Anything else is fatal.

msgpack (msgspec), one message a packet. Paths travel as bytes, because file names need not be UTF-8.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import Any

import msgspec

from edged.accounts.packets import BrokenPeer
from edged.identity.grants import Ban, Grant


class WorkerKind(StrEnum):
    """File calls and batch commands never share a process."""

    FILES = "files"
    BATCH = "batch"


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The class name is the tag; fields travel in order."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A typed error on the wire. ``codes``: its own code first, then those of its base classes."""

    codes: tuple[str, ...]
    message: str
    detail: str = ""
    values: dict[str, Any] = {}


# --- front → accountd


class Admit(Message, frozen=True):
    """Make ``grant`` usable on my channel to its account's worker; ``channel``: I have none, send one."""

    call: int
    kind: WorkerKind
    grant: bytes
    channel: bool


class Forget(Message, frozen=True):
    """I will not use this handle again."""

    kind: WorkerKind
    account: str
    handle: int


FromFront = Admit | Forget


# --- accountd → front


class Admitted(Message, frozen=True):
    """``handle`` stands for the grant on the channel. Carries the channel when one was asked for."""

    call: int
    handle: int
    account: str
    expires_at: float


class Refused(Message, frozen=True):
    call: int
    failure: Failure


ToFront = Admitted | Refused


# --- accountd → zygote


class ExportRoot(msgspec.Struct, frozen=True):
    """What a worker knows of an export: where it lies in the namespace and on disk."""

    label: str
    prefix: str
    root: str


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Fork a worker that is this account. Carries the worker's control socket."""

    kind: WorkerKind
    account: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    exports: tuple[ExportRoot, ...]
    sessions: str
    locks: str
    threads: int
    environment: dict[str, str] = {}
    idle_s: float


# --- accountd → worker


class Add(Message, frozen=True):
    """``handle`` on ``channel`` stands for ``grant``, for a front of the user ``front``.

    Carries the channel when it is new.
    """

    call: int
    channel: int
    handle: int
    grant: Grant
    front: int


class Drop(Message, frozen=True):
    channel: int
    handle: int


class Withdraw(Message, frozen=True):
    """Forget all handles of whom the ban covers; accountd decides anew what they may do."""

    ban: Ban


class End(Message, frozen=True):
    """Finish what is running, then exit."""


ToWorker = Add | Drop | Withdraw | End


# --- worker → accountd


class Ready(Message, frozen=True):
    """The worker is its account, and proved it."""

    pid: int


class Added(Message, frozen=True):
    call: int


class Idle(Message, frozen=True):
    """Nothing was asked for idle_s."""


FromWorker = Ready | Added | Idle


# --- front → worker


class Request(Message, frozen=True):
    """``call`` names the reply; ``handle`` the grant."""

    call: int
    handle: int


class FileRequest(Request, frozen=True):
    export: str
    path: bytes


class Stat(FileRequest, frozen=True):
    pass


class Open(FileRequest, frozen=True):
    pass


class Append(FileRequest, frozen=True):
    pass


class MakeTemporary(FileRequest, frozen=True):
    parents: bool
    mode: int = 0  # permission bits; 0: what the umask leaves


class Commit(FileRequest, frozen=True):
    """``path`` is the temporary, ``target`` what it becomes."""

    target: bytes
    replace: bool
    durable: bool
    attributes: dict[str, bytes] | None
    mtime_ns: int | None


class Discard(FileRequest, frozen=True):
    pass


class List(FileRequest, frozen=True):
    limit: int


class MakeDirectory(FileRequest, frozen=True):
    parents: bool


class Remove(FileRequest, frozen=True):
    recursive: bool


class Rename(FileRequest, frozen=True):
    target: bytes
    replace: bool


class GetAttributes(FileRequest, frozen=True):
    pass


class SetAttributes(FileRequest, frozen=True):
    put: dict[str, bytes]
    drop: tuple[str, ...]


class SetTimes(FileRequest, frozen=True):
    mtime_ns: int


class GetSpace(FileRequest, frozen=True):
    pass


class Sweep(FileRequest, frozen=True):
    """Remove temporaries older than ``older_s`` below ``path``."""

    older_s: float


FilesRequest = (
    Stat
    | Open
    | Append
    | MakeTemporary
    | Commit
    | Discard
    | List
    | MakeDirectory
    | Remove
    | Rename
    | GetAttributes
    | SetAttributes
    | SetTimes
    | GetSpace
    | Sweep
)


class Perform(Request, frozen=True):
    """``verb`` names one of the closed set; ``body`` is it in msgpack, or empty: in the descriptor."""

    verb: str
    deadline_s: float
    body: bytes


# --- worker → front


class Carries(IntEnum):
    """What the descriptor beside a reply is."""

    NOTHING = 0
    FILE = 1
    BODY = 2


class Done(Message, frozen=True):
    call: int
    carries: Carries
    body: msgspec.Raw


class Failed(Message, frozen=True):
    call: int
    failure: Failure


class Stale(Message, frozen=True):
    """The handle is not known here (any more): nothing was done, ask accountd again."""

    call: int


class Goodbye(Message, frozen=True):
    """The worker ends: send nothing more here, await what is running, then close."""


ToFrontFromWorker = Done | Failed | Stale | Goodbye

encode = msgspec.msgpack.Encoder(enc_hook=str).encode


def decoder(kind: Any) -> Callable[[memoryview], Any]:
    """Decodes ``kind`` and nothing else: BrokenPeer for whatever is wrong.

    msgspec tells text that is not UTF-8 by UnicodeDecodeError, which is none of its own errors.
    """
    decode = msgspec.msgpack.Decoder(kind).decode

    def strict(data: memoryview) -> Any:
        try:
            return decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BrokenPeer(str(error)) from error

    return strict
