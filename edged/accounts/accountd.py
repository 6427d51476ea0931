"""accountd: admits signed grants and hands fronts a channel to the account's worker.

One plain loop without threads. It holds CAP_SETUID through its zygote, reads no byte that came from
the network unsigned, and is off the hot path: after admission a front talks to the worker alone.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from edged import systemd
from edged.accounts import local, messages, packets
from edged.accounts.admission import admitted
from edged.accounts.faults import to_wire
from edged.accounts.messages import WorkerKind, encode
from edged.accounts.packets import BrokenPeer
from edged.accounts.parties import Front, Waiting, Worker, WorkerKey
from edged.accounts.publickey import PublicKey
from edged.accounts.settings import Settings
from edged.errors import EdgeError, Unavailable
from edged.identity.feed import BanLifted, Banned, Begin, FeedReader, Revocations
from edged.identity.grants import Ban, Grant
from edged.logs import audit, get_logger

log = get_logger("edged.accountd")

MAX_FRONTS = 256
MAX_FRONTS_OF_A_USER = MAX_FRONTS // 2  # a front that was taken over shuts nobody out
START_TRIES = 2
START_DEADLINE_S = 20.0
STUCK_S = 1.0  # a worker that takes nothing for so long could not even be told of a ban: it must go
FEED_RETRY_S = 0.1
BANS_S = 2.0  # how long an admission waits for the bans after a restart
MAX_EARLY = 10_000
MAX_OUTBOX = 10_000  # answers a front has not taken yet
MAX_CHANNELS_WAITING = 64  # and channels in them: each is an open file here

_NO_BANS = Unavailable("revocations are not loaded", detail="no live ban feed from identity")

_from_front: Callable[[memoryview], messages.FromFront] = messages.decoder(messages.FromFront)
_from_worker: Callable[[memoryview], messages.FromWorker] = messages.decoder(messages.FromWorker)


class Accountd:
    """The broker. ``zygote`` is the socket on which workers are asked for."""

    def __init__(self, settings: Settings, listener: socket.socket, zygote: socket.socket) -> None:
        self._settings = settings
        self._zygote = zygote
        self._selector = selectors.DefaultSelector()
        self._receiver = packets.Receiver()
        self._fronts: set[Front] = set()
        self._workers: dict[WorkerKey, Worker] = {}
        self._revocations = Revocations()
        self._feed: FeedReader | None = None
        self._feed_retry_at = 0.0
        self._key = PublicKey(Path(settings.public_key))
        self._numbers = 0
        self._early: deque[tuple[Front, messages.Admit, float]] = deque()
        self._running = True
        self._watch(listener, lambda: self._accept(listener))
        self._watch(zygote, self._zygote_ended)

    def stop_when_readable(self, fd: int) -> None:
        """End when the other end of this pipe is closed, or a signal wrote into it."""
        self._selector.register(fd, selectors.EVENT_READ, self.stop)

    def stop(self) -> None:
        """Leave ``serve`` after the current event."""
        self._running = False

    def serve(self) -> None:
        """Until stopped. Raises RuntimeError when the zygote died: the keeper then starts us anew."""
        watchdog = systemd.Watchdog()
        while self._running:
            watchdog.alive()
            self._follow_feed()
            for key, _ in self._selector.select(FEED_RETRY_S):
                if not _closed(key.fileobj):  # by an earlier event of this round
                    key.data()
            for front in [front for front in self._fronts if front.outbox]:
                self._send_late(front)
            self._tell_those_that_were_full()
            self._admit_early()
            self._give_up_late()

    # --- fronts

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if not self._has_room_for(uid):
            log.warning("connection refused", extra={"uid": uid, "fronts": len(self._fronts)})
            sock.close()
            return
        sock.setblocking(False)
        front = Front(sock, uid)
        self._fronts.add(front)
        self._watch(sock, lambda: self._front_speaks(front))

    def _has_room_for(self, uid: int) -> bool:
        own = sum(front.uid == uid for front in self._fronts)
        known = uid in self._settings.peers
        return known and len(self._fronts) < MAX_FRONTS and own < MAX_FRONTS_OF_A_USER

    def _front_speaks(self, front: Front) -> None:
        try:
            packet = self._read(front.sock)
            if packet is None:
                self._drop_front(front)
                return
            message = _from_front(packet)
        except BlockingIOError:
            return
        except (OSError, BrokenPeer) as error:
            log.error("front broke the protocol", extra={"uid": front.uid, "reason": str(error)})  # noqa: TRY400
            self._drop_front(front)
            return
        if isinstance(message, messages.Admit):
            self._admit(front, message)
        else:
            self._forget(front, message)

    def _admit(self, front: Front, asked: messages.Admit) -> None:
        """Decide now; or a little later, when the bans are being loaded again."""
        if self._revocations.usable(time.monotonic()):
            self._decide(front, asked)
        elif len(self._early) < MAX_EARLY:
            self._early.append((front, asked, time.monotonic() + BANS_S))
        else:
            self._refuse(front, asked.call, _NO_BANS)

    def _admit_early(self) -> None:
        """Those who came before the bans: decide when these are loaded, refuse when that takes too long."""
        now = time.monotonic()
        usable = self._revocations.usable(now)
        while self._early and (usable or self._early[0][2] < now):
            front, asked, _ = self._early.popleft()
            if front not in self._fronts:
                continue
            if usable:
                self._decide(front, asked)
            else:
                self._refuse(front, asked.call, _NO_BANS)
                _audit(None, front.uid, asked.kind, _NO_BANS)

    def _decide(self, front: Front, asked: messages.Admit) -> None:
        grant: Grant | None = None
        try:
            grant = admitted(
                asked.grant,
                peer=front.uid,
                settings=self._settings,
                key=self._key.get(),
                revocations=self._revocations,
                now=time.time(),
            )
            waiting = Waiting(front, asked.call, grant, self._number(), asked.channel, time.monotonic())
            self._add((grant.account, asked.kind), waiting)
        except EdgeError as error:
            self._refuse(front, asked.call, error)
            _audit(grant, front.uid, asked.kind, error)
        except OSError as error:  # no file is left: who asks waits, nobody is cut off
            self._refuse(front, asked.call, Unavailable("accountd is out of resources", detail=str(error)))

    def _forget(self, front: Front, message: messages.Forget) -> None:
        key = (message.account, message.kind)
        worker, channel = self._workers.get(key), front.channels.get(key)
        if worker is not None and channel is not None:
            self._tell(worker, messages.Drop(channel, message.handle))

    def _refuse(self, front: Front, call: int, error: EdgeError) -> None:
        self._reply(front, messages.Refused(call, to_wire(error)))

    def _reply(self, front: Front, message: messages.ToFront, theirs: socket.socket | None = None) -> None:
        """``theirs`` goes along, and is closed here."""
        front.outbox.append((encode(message), theirs))
        self._send_late(front)

    def _send_late(self, front: Front) -> None:
        """What a busy front has not taken waits for the next round, up to a limit; nobody waits for it."""
        try:
            while front.outbox:
                packet, theirs = front.outbox[0]
                packets.send(front.sock, packet, theirs.fileno() if theirs else None)
                front.outbox.popleft()
                if theirs:
                    theirs.close()
        except BlockingIOError:
            channels = sum(theirs is not None for _, theirs in front.outbox) if theirs else 0
            if len(front.outbox) > MAX_OUTBOX or channels > MAX_CHANNELS_WAITING:
                log.error("front does not read its answers", extra={"uid": front.uid})  # noqa: TRY400
                self._drop_front(front)
        except OSError:
            self._drop_front(front)

    def _drop_front(self, front: Front) -> None:
        for _, theirs in front.outbox:
            if theirs:
                theirs.close()
        front.outbox.clear()
        if front in self._fronts:
            self._fronts.discard(front)
            self._unwatch(front.sock)

    # --- workers

    def _add(self, key: WorkerKey, waiting: Waiting) -> None:
        """Put the grant into the account's worker, starting it first if need be."""
        worker = self._workers.get(key) or self._start(key)
        front, mine = waiting.front, None
        if waiting.wants_channel or key not in front.channels:
            mine, waiting.theirs = packets.pair()
            front.channels[key] = self._number()
        worker.waiting[waiting.handle] = waiting
        add = messages.Add(waiting.handle, front.channels[key], waiting.handle, waiting.grant, front.uid)
        self._tell(worker, add, mine)

    def _start(self, key: WorkerKey) -> Worker:
        name, kind = key
        own = self._settings.own_account is not None
        account = local.own() if own else local.find(name, self._settings.minimum_uid)
        sessions = self._settings.sessions
        start = messages.Start(
            kind=kind,
            account=name,
            uid=account.uid,
            gid=account.gid,
            groups=account.groups,
            home=account.home,
            exports=tuple(e.root for e in self._settings.exports if own or name in e.accounts),
            sessions=local.make_directory(sessions, account) if sessions else "",
            locks=local.make_directory(self._settings.locks, account),
            threads=self._settings.file_threads if kind is WorkerKind.FILES else self._settings.batch_threads,
            idle_s=self._settings.idle_s,
            environment=self._settings.environment,
        )
        ours, theirs = packets.pair()
        try:
            packets.send(self._zygote, msgspec.msgpack.encode(start), theirs.fileno())
        except OSError as error:
            ours.close()
            self._zygote_ended()
            raise Unavailable("workers cannot be started now", detail=str(error)) from error
        finally:
            theirs.close()
        ours.setblocking(False)
        worker = self._workers[key] = Worker(key, ours)
        self._watch(ours, lambda: self._worker_speaks(worker))
        log.info("worker started", extra={"account": name, "kind": kind.value})
        return worker

    def _worker_speaks(self, worker: Worker) -> None:
        try:
            packet = self._read(worker.sock)
            message = None if packet is None else _from_worker(packet)
        except BlockingIOError:
            return
        except (OSError, BrokenPeer) as error:
            log.error("worker broke the protocol", extra={"worker": worker.key, "reason": str(error)})  # noqa: TRY400
            message = None
        match message:
            case messages.Added(call):
                self._confirm(worker, call)
            case messages.Ready(pid):
                worker.pid = pid
            case messages.Idle():
                if not worker.waiting:
                    self._tell(worker, messages.End())
                    self._let_go(worker)
            case None:
                self._worker_ended(worker)

    def _confirm(self, worker: Worker, call: int) -> None:
        waiting = worker.waiting.pop(call, None)
        if waiting is None:
            return
        grant, theirs = waiting.grant, waiting.theirs
        reply = messages.Admitted(waiting.call, waiting.handle, grant.account, grant.expires_at)
        self._reply(waiting.front, reply, theirs)
        _audit(grant, waiting.front.uid, worker.key[1], None)

    def _worker_ended(self, worker: Worker) -> None:
        """Start anew for those who waited: they were told nothing, so nothing is done twice."""
        log.warning(
            "worker ended", extra={"account": worker.key[0], "kind": worker.key[1], "pid": worker.pid}
        )
        self._let_go(worker)
        for waiting in worker.waiting.values():
            waiting.tries += 1
            waiting.theirs = None
            try:
                if waiting.tries >= START_TRIES:
                    raise Unavailable("the account's worker does not start")
                self._add(worker.key, waiting)
            except EdgeError as error:
                self._refuse(waiting.front, waiting.call, error)
            except OSError as error:
                out = Unavailable("accountd is out of resources", detail=str(error))
                self._refuse(waiting.front, waiting.call, out)

    def _let_go(self, worker: Worker) -> None:
        """The next admission starts another worker, on a new channel."""
        if self._workers.get(worker.key) is worker:
            del self._workers[worker.key]
            for front in self._fronts:
                front.channels.pop(worker.key, None)
        for _, channel, _ in worker.outbox:
            if channel:
                channel.close()
        worker.outbox.clear()
        self._unwatch(worker.sock)

    def _tell(self, worker: Worker, message: messages.ToWorker, channel: socket.socket | None = None) -> None:
        """Now, or as soon as it takes it: one that starts reads nothing yet. ``channel`` is closed here."""
        worker.outbox.append((encode(message), channel, time.monotonic()))
        self._tell_late(worker)

    def _tell_late(self, worker: Worker) -> None:
        try:
            while worker.outbox:
                packet, channel, _ = worker.outbox[0]
                packets.send(worker.sock, packet, channel.fileno() if channel else None)
                worker.outbox.popleft()
                if channel:
                    channel.close()
        except OSError:
            pass  # it is full, or its end is readable and handled there

    def _tell_those_that_were_full(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker in self._workers.values() if worker.outbox]:
            self._tell_late(worker)
            patience_s = STUCK_S if worker.pid else START_DEADLINE_S
            if worker.outbox and now - worker.outbox[0][2] > patience_s:
                self._worker_ended(worker)

    def _give_up_late(self) -> None:
        late = time.monotonic() - START_DEADLINE_S
        for worker in list(self._workers.values()):
            for handle, waiting in list(worker.waiting.items()):
                if waiting.since < late:
                    del worker.waiting[handle]
                    self._refuse(
                        waiting.front, waiting.call, Unavailable("the account's worker does not answer")
                    )

    def _zygote_ended(self) -> None:
        raise RuntimeError("zygote ended")

    # --- bans

    def _follow_feed(self) -> None:
        if self._feed is not None or time.monotonic() < self._feed_retry_at:
            return
        try:
            self._feed = FeedReader(Path(self._settings.feed))
            self._watch(self._feed, self._hear)
        except Unavailable:
            self._feed_retry_at = time.monotonic() + FEED_RETRY_S

    def _hear(self) -> None:
        assert self._feed is not None
        try:
            for message in self._feed.read():
                before = {ban.id: ban for ban in self._revocations.bans()}
                self._revocations.apply(message)
                match message:
                    case Banned(ban):
                        self._withdraw(ban)
                    case BanLifted(ban_id) if ban_id in before:
                        self._withdraw(before[ban_id])  # reduced job grants become whole when asked again
                    case Begin():
                        log.info("ban feed connected")
        except Unavailable as error:
            log.warning("ban feed lost", extra={"reason": str(error)})
            self._selector.unregister(self._feed)
            self._feed.close()
            self._feed = None

    def _withdraw(self, ban: Ban) -> None:
        for worker in list(self._workers.values()):
            self._tell(worker, messages.Withdraw(ban))

    # --- sockets

    def _read(self, sock: socket.socket) -> memoryview | None:
        """One packet; nobody may send descriptors to accountd."""
        received = self._receiver.receive(sock, packets.NOW)
        if received is None:
            return None
        data, fd = received
        if fd is not None:
            os.close(fd)
            raise BrokenPeer("unasked descriptor")
        return data

    def _watch(self, what: socket.socket | FeedReader, call: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, call)

    def _unwatch(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._selector.unregister(sock)
            sock.close()

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


def _closed(what: object) -> bool:
    return isinstance(what, socket.socket) and what.fileno() < 0


def _audit(grant: Grant | None, uid: int, kind: WorkerKind, error: EdgeError | None) -> None:
    principal = grant.principal.for_log() if grant is not None and grant.principal is not None else None
    audit(
        "grant admitted" if error is None else "grant refused",
        who=principal,
        allowed=error is None,
        reason="valid" if error is None else str(error),
        front_uid=uid,
        worker=kind.value,
        account=grant.account if grant else None,
        grant=grant.id if grant else None,
        service=grant.service if grant else None,
        job=grant.job if grant else None,
    )
