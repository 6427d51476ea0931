"""The calls of ``api`` as requests to workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from edged.accounts import messages, packets
from edged.accounts.api import BatchVerb, Entry, OpenFile, Place, Space, Temporary
from edged.accounts.channel import Reply
from edged.accounts.messages import WorkerKind
from edged.accounts.tree import Listing
from edged.accounts.worker import INLINE_BYTES
from edged.errors import BadRequest, TooLarge, Unavailable, UnknownOutcome

FILE_S = 60.0  # a hung file server ends here for the caller; the worker's thread may take longer
SLOW_S = 600.0  # removing or listing much
MARGIN_S = 10.0  # how much longer a batch call is awaited than its verb may take

Result = TypeVar("Result")


class Caller(Protocol):
    """What these calls need of AccountClient."""

    async def call(
        self,
        grant: bytes,
        worker: WorkerKind,
        kind: Callable[..., messages.Request],
        *arguments: object,
        deadline_s: float,
        changes: bool,
        body: Callable[[], int] | None = None,
        export: str | None = None,
    ) -> Reply: ...


_entry = msgspec.msgpack.Decoder(Entry).decode
_path = msgspec.msgpack.Decoder(bytes).decode
_listing = msgspec.msgpack.Decoder(Listing).decode
_flag = msgspec.msgpack.Decoder(bool).decode
_attributes = msgspec.msgpack.Decoder(dict[str, bytes]).decode
_space = msgspec.msgpack.Decoder(Space).decode
_count = msgspec.msgpack.Decoder(int).decode


class RemoteFiles:
    """``api.Files``, done by the account's files worker."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def stat(self, grant: bytes, place: Place) -> Entry:
        """See ``api.Files``."""
        return _named(_entry((await self._look(grant, messages.Stat, place)).body), place)

    async def open(self, grant: bytes, place: Place) -> OpenFile:
        return _opened(await self._look(grant, messages.Open, place), place)

    async def append(self, grant: bytes, place: Place) -> OpenFile:
        return _opened(await self._look(grant, messages.Append, place), place)

    async def temporary(
        self, grant: bytes, target: Place, *, parents: bool = False, mode: int = 0
    ) -> Temporary:
        reply = await self._look(grant, messages.MakeTemporary, target, parents, mode)
        if reply.fd is None:
            raise Unavailable("the worker sent no file")
        return Temporary(reply.fd, Place(target.export, os.fsdecode(_path(reply.body))))

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
        if temporary.export != target.export:
            raise BadRequest("a file is committed within its export")
        notes = _small(dict(attributes or {}))
        reply = await self._change(
            grant, messages.Commit, temporary, os.fsencode(target.path), replace, durable, notes, mtime_ns
        )
        return _named(_entry(reply.body), target)

    async def discard(self, grant: bytes, temporary: Place) -> None:
        await self._look(grant, messages.Discard, temporary)

    async def list(self, grant: bytes, place: Place, *, limit: int = 1_000_000) -> Sequence[Entry]:
        reply = await self._look(grant, messages.List, place, limit, deadline_s=SLOW_S)
        found = await _in_thread(reply, _entries) if reply.in_memory else _entries(bytes(reply.body))
        if len(found) > limit:
            raise Unavailable("the worker sent more than was asked for")
        return found

    async def mkdir(self, grant: bytes, place: Place, *, parents: bool = False) -> None:
        await self._change(grant, messages.MakeDirectory, place, parents)

    async def remove(self, grant: bytes, place: Place, *, recursive: bool = False) -> None:
        await self._change(grant, messages.Remove, place, recursive, deadline_s=SLOW_S)

    async def rename(self, grant: bytes, source: Place, target: Place, *, replace: bool) -> bool:
        if source.export != target.export:
            raise BadRequest("not possible between two exports")
        return _flag(
            (await self._change(grant, messages.Rename, source, os.fsencode(target.path), replace)).body
        )

    async def attributes(self, grant: bytes, place: Place) -> dict[str, bytes]:
        reply = await self._look(grant, messages.GetAttributes, place)
        if not reply.in_memory:
            return _attributes(reply.body)
        return await _in_thread(reply, _attributes)

    async def set_attributes(
        self, grant: bytes, place: Place, put: Mapping[str, bytes], drop: Sequence[str] = ()
    ) -> None:
        await self._change(grant, messages.SetAttributes, place, _small(dict(put)), tuple(drop))

    async def set_times(self, grant: bytes, place: Place, mtime_ns: int) -> None:
        await self._change(grant, messages.SetTimes, place, mtime_ns)

    async def space(self, grant: bytes, place: Place) -> Space:
        return _space((await self._look(grant, messages.GetSpace, place)).body)

    async def sweep(self, grant: bytes, place: Place, *, older_s: float) -> int:
        """Remove temporaries that nobody wrote to for ``older_s`` below ``place``; returns how many."""
        return _count((await self._look(grant, messages.Sweep, place, older_s, deadline_s=SLOW_S)).body)

    async def _look(
        self,
        grant: bytes,
        kind: type[messages.FileRequest],
        place: Place,
        *more: object,
        deadline_s: float = FILE_S,
    ) -> Reply:
        """A request that may be repeated without harm when it got no answer."""
        return await self._ask(grant, kind, place, more, deadline_s, changes=False)

    async def _change(
        self,
        grant: bytes,
        kind: type[messages.FileRequest],
        place: Place,
        *more: object,
        deadline_s: float = FILE_S,
    ) -> Reply:
        """A request whose outcome is unknown when it got no answer."""
        return await self._ask(grant, kind, place, more, deadline_s, changes=True)

    async def _ask(
        self,
        grant: bytes,
        kind: type[messages.FileRequest],
        place: Place,
        more: tuple[object, ...],
        deadline_s: float,
        *,
        changes: bool,
    ) -> Reply:
        arguments = (place.export, os.fsencode(place.path), *more)
        return await self._caller.call(
            grant,
            WorkerKind.FILES,
            kind,
            *arguments,
            deadline_s=deadline_s,
            changes=changes,
            export=place.export,
        )


class RemoteBatch:
    """``api.Batch``, done by the account's batch worker."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def perform(
        self, grant: bytes, verb: BatchVerb, result: type[Result], *, deadline_s: float
    ) -> Result:
        """Perform ``verb``. Raises what it raises; UnknownOutcome when its answer did not come."""
        body = messages.encode(verb)
        inline = len(body) <= INLINE_BYTES
        reply = await self._caller.call(
            grant,
            WorkerKind.BATCH,
            messages.Perform,
            f"{type(verb).__module__}:{type(verb).__qualname__}",
            deadline_s,
            body if inline else b"",
            deadline_s=deadline_s + MARGIN_S,
            changes=True,
            body=None if inline else lambda: packets.in_memory(body),
        )
        decode: Callable[[Any], Result] = msgspec.msgpack.Decoder(result).decode
        try:
            return await _in_thread(reply, decode) if reply.in_memory else decode(reply.body)
        except msgspec.MsgspecError as error:
            raise UnknownOutcome("the batch worker's answer has another form", detail=str(error)) from error


async def _in_thread(reply: Reply, decode: Callable[[bytes], Result]) -> Result:
    """Decode a long answer off the loop, and close what carried it."""
    if reply.fd is None:
        raise Unavailable("the worker sent no answer")
    fd = reply.fd

    def work() -> Result:
        try:
            return decode(packets.read_memory(fd))
        except packets.BrokenPeer as error:
            raise Unavailable("the worker's answer is too long", detail=str(error)) from error
        finally:
            os.close(fd)

    return await asyncio.to_thread(work)


def _entries(data: bytes) -> Sequence[Entry]:
    listing = _listing(data)
    odd = [msgspec.structs.replace(found, name=os.fsdecode(name)) for name, found in listing.odd]
    return listing.entries + odd if odd else listing.entries


def _opened(reply: Reply, place: Place) -> OpenFile:
    if reply.fd is None:
        raise Unavailable("the worker sent no file")
    return OpenFile(reply.fd, _named(_entry(reply.body), place))


def _named(entry: Entry, place: Place) -> Entry:
    """Names that are not UTF-8 do not travel in entries: we asked by name, so we know it."""
    name = place.path.rpartition("/")[2]
    return entry if entry.name == name else msgspec.structs.replace(entry, name=name)


def _small(attributes: dict[str, bytes]) -> dict[str, bytes]:
    if sum(len(name) + len(value) + 8 for name, value in attributes.items()) > INLINE_BYTES // 2:
        raise TooLarge("attributes are too long")
    return attributes
