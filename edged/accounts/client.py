"""How a front uses accounts: admission by accountd once per grant, then straight to the workers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edged.accounts import messages
from edged.accounts.channel import Channel, PacketSocket, Reply, StaleHandle
from edged.accounts.faults import from_wire
from edged.accounts.messages import WorkerKind, encode
from edged.accounts.packets import BrokenPeer
from edged.accounts.remote import RemoteBatch, RemoteFiles
from edged.config import Config
from edged.errors import EdgeError, Unavailable
from edged.identity.grants import SIGNATURE_BYTES
from edged.logs import get_logger

log = get_logger("edged.accounts")

HANDLES = 2048  # kept at both ends, some KiB each: job grants are many and seldom used again
PATIENCE_S = 3.0  # accountd restarts within this; nothing was done yet, so waiting is safe
ADMISSION_S = 30.0
RETRY_S = 0.05
EXPIRY_S = 1.0

_to_front: Callable[[memoryview], messages.ToFront] = messages.decoder(messages.ToFront)
WorkerKey = tuple[str, WorkerKind]


@dataclass(slots=True)
class Held:
    """An admitted grant: its handle on a channel. ``expires_at`` is Unix seconds."""

    channel: Channel
    handle: int
    account: str
    expires_at: float


class AccountClient:
    """The service that fronts use; see ``api`` for ``files`` and ``batch``."""

    name = "accounts"

    def __init__(self, path: Path, places: int = 16) -> None:
        """``path``: accountd's socket. ``places``: calls at once for one account and export."""
        self._path = path
        self._places = places
        self._connection: Connection | None = None
        self._channels: dict[WorkerKey, Channel] = {}
        self._open: set[Channel] = set()  # with those that said goodbye and have calls left
        self._held: OrderedDict[tuple[bytes, WorkerKind], Held] = OrderedDict()
        self._admitting: dict[tuple[bytes, WorkerKind], asyncio.Future[Held]] = {}
        self._running = False
        self.files = RemoteFiles(self)
        self.batch = RemoteBatch(self)

    @classmethod
    def of(cls, config: Config) -> AccountClient:
        """For the accountd of this configuration."""
        return cls(config.runtime.run / config.accounts.socket_name, config.accounts.file_threads)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Enter to use it; on leaving, everything is closed and pending calls get Unavailable."""
        self._running = True
        clock = tasks.create_task(self._expire())
        try:
            yield
        finally:
            self._running = False
            clock.cancel()
            for channel in list(self._open):
                channel.close()
            if self._connection is not None:
                self._connection.close()

    def not_ready(self) -> str | None:
        """None while accountd is there."""
        if self._connection is not None:
            return None
        try:
            self._connect()
        except OSError as error:
            return f"accountd does not answer: {error}"
        return None

    def silent(self) -> dict[str, float]:
        """Export → for how many seconds its file system has answered nothing (0: it does, or nobody asks)."""
        now = time.monotonic()
        found: dict[str, float] = {}
        for channel in self._open:
            for export, seconds in channel.silent(now).items():
                found[export] = max(found.get(export, 0.0), seconds)
        return found

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
    ) -> Reply:
        """One request under ``grant``; a handle that the worker forgot is asked for again, once.

        ``body`` makes the descriptor to send along. Raises EdgeError.
        """
        held = self._held.get((grant, worker))
        if held is None or not held.channel.usable:
            held = await self._admit(grant, worker)
        else:
            self._held.move_to_end((grant, worker))
        for last in (False, True):
            try:
                fd = None if body is None else body()
                return await held.channel.call(
                    kind,
                    held.handle,
                    *arguments,
                    deadline_s=deadline_s,
                    changes=changes,
                    body=fd,
                    export=export,
                )
            except StaleHandle:
                self._held.pop((grant, worker), None)
                if last:
                    break
                held = await self._admit(grant, worker)
        raise Unavailable("the account's worker forgets its grants")

    # --- admission

    async def _admit(self, grant: bytes, worker: WorkerKind) -> Held:
        """Ask accountd; several callers with one grant ask once."""
        key = (grant, worker)
        future = self._admitting.get(key)
        if future is None:
            connection = await self._connected()
            future = self._admitting.get(key)
        if future is None:
            future = self._admitting[key] = connection.admit(grant, worker)
            future.add_done_callback(lambda done: self._admitted(key, done))
        try:
            async with asyncio.timeout(ADMISSION_S):
                return await asyncio.shield(future)
        except TimeoutError:
            raise Unavailable("accountd did not answer in time") from None

    def _admitted(self, key: tuple[bytes, WorkerKind], done: asyncio.Future[Held]) -> None:
        self._admitting.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._held[key] = done.result()
        if len(self._held) > HANDLES:
            (_, worker), old = self._held.popitem(last=False)
            if self._connection is not None:
                self._connection.forget(worker, old)

    async def _connected(self) -> Connection:
        """The connection to accountd, awaited for a moment while it restarts. Raises Unavailable."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if not self._running:
                raise Unavailable("accounts: not running")
            try:
                return self._connection or self._connect()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Unavailable("accountd does not answer", detail=str(error)) from error
            await asyncio.sleep(RETRY_S)

    def _connect(self) -> Connection:
        sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            sock.connect(str(self._path))  # a unix socket connects at once or not at all
        except BaseException:
            sock.close()
            raise
        self._connection = Connection(sock, self._channels, self._adopt, self._disconnected)
        return self._connection

    def _disconnected(self) -> None:
        """accountd is gone; its workers finish what they have and say goodbye by themselves."""
        self._connection = None
        if self._running:
            log.warning("accountd connection lost")

    def _adopt(self, key: WorkerKey, sock: socket.socket) -> None:
        channel = self._channels[key] = Channel(sock, self._channel_ended, self._places)
        self._open.add(channel)

    def _channel_ended(self, channel: Channel) -> None:
        self._open.discard(channel)
        for key in [key for key, found in self._channels.items() if found is channel]:
            del self._channels[key]
        for held in [key for key, found in self._held.items() if found.channel is channel]:
            del self._held[held]

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_S)
            now = time.monotonic()
            for channel in list(self._open):
                channel.expire(now)


class Connection:
    """One connection to accountd, and the channels that came over it."""

    def __init__(
        self,
        sock: socket.socket,
        channels: dict[WorkerKey, Channel],
        adopt: Callable[[WorkerKey, socket.socket], None],
        on_end: Callable[[], None],
    ) -> None:
        self._channels = channels
        self._adopt = adopt
        self._on_end = on_end
        self._pending: dict[int, tuple[WorkerKind, asyncio.Future[Held]]] = {}
        self._coming: dict[
            WorkerKey, int
        ] = {}  # the call that brings a channel: the others wait for the same
        self._calls = 0
        self._packets = PacketSocket(sock, self._answered, self._ended)

    def admit(self, grant: bytes, worker: WorkerKind) -> asyncio.Future[Held]:
        """The future handle. Fails with Denied or Unavailable."""
        self._calls += 1
        future: asyncio.Future[Held] = asyncio.get_running_loop().create_future()
        self._pending[self._calls] = (worker, future)
        lacks = self._lacks((_account_in(grant), worker))
        self._packets.send(encode(messages.Admit(self._calls, worker, grant, lacks)))
        return future

    def forget(self, worker: WorkerKind, held: Held) -> None:
        """Tell that a handle is not used any more."""
        self._packets.send(encode(messages.Forget(worker, held.account, held.handle)))

    def close(self) -> None:
        self._packets.close()

    def _lacks(self, key: WorkerKey) -> bool:
        """Whether there is no usable channel to the worker that the (unverified) grant names, nor one coming."""
        channel = self._channels.get(key)
        if (channel is not None and channel.usable) or self._coming.get(key) in self._pending:
            return False
        self._coming[key] = self._calls
        return True

    def _answered(self, packet: memoryview, fd: int | None) -> bool:
        theirs = None if fd is None else socket.socket(fileno=fd)
        try:
            message = _to_front(packet)
            worker, future = self._pending.pop(message.call)
        except (BrokenPeer, KeyError) as error:
            if theirs is not None:
                theirs.close()
            raise BrokenPeer("unexpected answer of accountd") from error
        if isinstance(message, messages.Refused):
            if theirs is not None:
                theirs.close()
            _fail(future, from_wire(message.failure))
            return False
        key = (message.account, worker)
        if theirs is not None:
            self._adopt(key, theirs)
        channel = self._channels.get(key)
        if channel is None or not channel.usable:
            _fail(future, Unavailable("the account's worker ended"))
        elif not future.done():
            future.set_result(Held(channel, message.handle, message.account, message.expires_at))
        return False

    def _ended(self) -> None:
        lost, self._pending = self._pending, {}
        for _, future in lost.values():
            _fail(future, Unavailable("accountd ended"))
        self._on_end()


def _fail(future: asyncio.Future[Held], error: EdgeError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # the one who asked may be gone: that is no unhandled error


class _AccountOnly(msgspec.Struct):
    account: str


_account_decode = msgspec.msgpack.Decoder(_AccountOnly).decode


def _account_in(grant: bytes) -> str:
    """Only to know which channel would serve; accountd decides what the grant is worth."""
    try:
        return _account_decode(grant[SIGNATURE_BYTES:]).account
    except (msgspec.MsgspecError, ValueError):
        return ""
