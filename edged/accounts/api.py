"""What a front can do as an account. Every call carries a grant; the worker enforces it.

Places are (export label, path relative to the export's root, without leading slash, already
normalised). ``SESSIONS`` is the pseudo-export of job session directories; its paths are
``<job id>/...`` below the account's own directory, and only a job grant for that job opens it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    from edged.accounts.clients import Workplace
    from edged.identity.words import Action

SESSIONS = "@sessions"


class Place(NamedTuple):
    """A file or directory below an export."""

    export: str
    path: str


class Kind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One stat result. Times in nanoseconds since 1970, sizes in bytes."""

    name: str
    kind: Kind
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    mode: int
    uid: int
    gid: int
    links: int
    blocks: int = 0


@dataclass(slots=True)
class OpenFile:
    """An open file that now belongs to the caller, who closes it.

    ``fd`` is -1 for a file of another machine (a session directory behind SSH): ``read`` serves both.
    """

    fd: int
    entry: Entry

    async def read(self, count: int, offset: int) -> bytes:
        """At most ``count`` bytes from ``offset``; empty at the end. Raises EdgeError."""
        import asyncio  # here, because workers take their verbs from this module and have no event loop

        from edged.accounts.faults import of_os

        try:
            return await asyncio.to_thread(os.pread, self.fd, count, offset)
        except OSError as error:
            raise of_os(error) from error

    def close(self) -> None:
        """Give it up."""
        os.close(self.fd)


@dataclass(slots=True)
class Temporary:
    """An invisible file in the target's own directory, open for writing. The caller closes ``fd``."""

    fd: int
    place: Place


class Space(msgspec.Struct, frozen=True):
    """Space as the account sees it: quota where there is one, else the file system's. Bytes and inodes."""

    total: int
    used: int
    available: int
    files_total: int
    files_used: int


class Files(Protocol):
    """File calls as an account. Errors: NotFound, Denied, Conflict, NoSpace, Busy, Unavailable, BadRequest.

    UnknownOutcome: a call that changes something got no answer, because its worker died or hung.
    """

    async def stat(self, grant: bytes, place: Place) -> Entry: ...
    async def open(self, grant: bytes, place: Place) -> OpenFile:
        """Open a regular file for reading."""
        ...

    async def append(self, grant: bytes, place: Place) -> OpenFile:
        """Open a Temporary again for writing at its end (resuming a broken copy)."""
        ...

    async def temporary(
        self, grant: bytes, target: Place, *, parents: bool = False, mode: int = 0
    ) -> Temporary:
        """A Temporary beside ``target``. ``mode``: its permission bits, 0 for what the umask leaves."""
        ...

    async def commit(
        self,
        grant: bytes,
        temporary: Place,
        target: Place,
        *,
        replace: bool,
        durable: bool,
        attributes: Mapping[str, bytes] | None = None,
        mtime_ns: int | None = None,
    ) -> Entry:
        """Make it appear whole: rename, or link when it must not replace (then Conflict if it exists)."""
        ...

    async def discard(self, grant: bytes, temporary: Place) -> None: ...
    async def list(self, grant: bytes, place: Place, *, limit: int = 1_000_000) -> Sequence[Entry]: ...
    async def mkdir(self, grant: bytes, place: Place, *, parents: bool = False) -> None: ...
    async def remove(self, grant: bytes, place: Place, *, recursive: bool = False) -> None:
        """Incomplete when only a part of a tree could be removed."""
        ...

    async def rename(self, grant: bytes, source: Place, target: Place, *, replace: bool) -> bool:
        """True when something was replaced. Conflict when it exists and may not be replaced."""
        ...

    async def attributes(self, grant: bytes, place: Place) -> dict[str, bytes]:
        """All ``user.*`` extended attributes, names without ``user.``."""
        ...

    async def set_attributes(
        self, grant: bytes, place: Place, put: Mapping[str, bytes], drop: Sequence[str] = ()
    ) -> None: ...
    async def set_times(self, grant: bytes, place: Place, mtime_ns: int) -> None: ...
    async def space(self, grant: bytes, place: Place) -> Space: ...
    async def sweep(self, grant: bytes, place: Place, *, older_s: float) -> int:
        """Remove Temporaries not written to for ``older_s`` seconds in ``place`` and below; how many."""
        ...


Result = TypeVar("Result")


class BatchVerb(msgspec.Struct, frozen=True, tag=True):
    """One thing a batch worker can do, e.g. submit or sweep. Drivers publish theirs as a closed set.

    Subclasses are found by the entry point group ``edged.batch`` (see services/jobs/batch). Only
    typed fields travel; ``perform`` runs in the account's batch worker and builds argv there. A verb
    with a field ``job`` is done only under that job's grant. Import at the top of your module: the
    account may be unable to read the installation, and only what is imported before it is there.
    """

    action: ClassVar[Action]  # what the grant must cover

    def perform(self, where: Workplace) -> object:
        """Do it, in a thread of the worker. The result must encode with msgspec; EdgeErrors travel."""
        raise NotImplementedError


class Batch(Protocol):
    """Batch calls as an account, in another process than its file calls."""

    async def perform(
        self, grant: bytes, verb: BatchVerb, result: type[Result], *, deadline_s: float
    ) -> Result: ...
