"""The other end of the gate that sits in every server: verdicts, heartbeats, and the end of the banned.

A server runs as an account, so the kernel tells (SO_PEERCRED) for which instances it may ask.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from edged import metrics
from edged.errors import EdgeError, Unavailable
from edged.identity import packets
from edged.identity.client import Covers, Verdicts
from edged.identity.packets import Packets
from edged.identity.words import Principal
from edged.logs import audit, get_logger
from services.storage.xrootd import judging, users
from services.storage.xrootd.passage import Passage
from services.storage.xrootd.plan import Instance, Plan, Role
from services.storage.xrootd.probekey import ProbeKey

log = get_logger("services.storage.xrootd.gate")

ASKING = ("ask", "watch")  # what a server may open a connection for
WORDS = {Role.PROXY: ("way",)}
BEAT_S = 0.5
SEEN = 4096
CUT_S = 90000.0  # nobody keeps a session of an expired token longer in our books

VERDICTS = metrics.counter("xrootd_verdicts", "Tokens judged for the root:// view.", ("outcome",))
CUTS = metrics.counter("xrootd_cuts", "Servers ended to cut sessions of somebody banned.")


@dataclass(slots=True, eq=False)
class Server:
    """One server as the gate knows it: its connections and who logged in lately."""

    instance: Instance
    watching: set[Packets] = field(default_factory=set)
    seen: dict[Principal, float] = field(default_factory=dict)  # until when sessions may live


class Gate:
    """Judges for all servers of the plan."""

    def __init__(
        self, plan: Plan, identity: Verdicts, probe_key: ProbeKey, passage: Passage | None = None
    ) -> None:
        self._plan = plan
        self._passage = passage  # for the forwarding proxy
        self._identity = identity
        self._probe_key = probe_key
        self._servers = {one.name: Server(one) for one in plan.instances}
        self._asking: dict[Packets, Server] = {}
        self._wayfaring: set[Packets] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self._tasks: asyncio.TaskGroup | None = None
        identity.on_ban(self._ban)

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Answer while entered."""
        self._tasks = tasks
        listener = packets.bind(self._plan.gate)
        async with packets.serving(listener, self._received, self._closed):
            beating = tasks.create_task(self._beat())
            try:
                yield
            finally:
                beating.cancel()
                for task in tuple(self._under_way):
                    task.cancel()
                await self._replace_passage(None)
                self._plan.gate.unlink(missing_ok=True)

    async def adopt(self, plan: Plan, passage: Passage | None = None) -> None:
        """A new configuration: servers that changed will connect again, all forget what they know."""
        self._plan = plan
        await self._replace_passage(passage)
        for name in set(self._servers) - {one.name for one in plan.instances}:
            del self._servers[name]
        for one in plan.instances:
            self._servers.setdefault(one.name, Server(one)).instance = one
        self._tell_all(b"flush")

    def connected(self, name: str) -> bool:
        """Whether this server's gate hears us."""
        server = self._servers.get(name)
        return server is not None and bool(server.watching)

    async def _replace_passage(self, passage: Passage | None) -> None:
        before, self._passage = self._passage, passage
        if before is not None:
            await before.aclose()

    # --- packets

    def _received(self, peer: Packets, packet: memoryview) -> None:
        server = self._asking.get(peer)
        if server is not None:
            self._start(self._answer(peer, server, bytes(packet)))
            return
        if peer in self._wayfaring:
            self._start(self._show_way(peer, bytes(packet)))
            return
        word, _, name = bytes(packet[:256]).decode("ascii", "replace").partition(" ")
        if word == "users" and peer.uid in (0, os.getuid()):
            _send(peer, users.encode({name: list(one.seen) for name, one in self._servers.items()}))
            return
        server = self._servers.get(name)
        words = WORDS.get(server.instance.role, ASKING) if server is not None else ()
        if server is None or word not in words or not may_speak_for(peer.uid, server.instance):
            log.warning("gate refused", extra={"uid": peer.uid, "said": f"{word} {name}"[:100]})
            peer.close()
            return
        if word == "ask":
            self._asking[peer] = server
        elif word == "way":
            self._wayfaring.add(peer)
        else:
            server.watching.add(peer)
            if self._identity.not_ready() is None:
                _send(peer, b"beat")

    def _closed(self, peer: Packets) -> None:
        self._asking.pop(peer, None)
        self._wayfaring.discard(peer)
        for server in self._servers.values():
            server.watching.discard(peer)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None
        task = self._tasks.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _show_way(self, peer: Packets, question: bytes) -> None:
        passage = self._passage
        said = judging.no("no proxy here")
        if passage is not None:
            said = await passage.answer(question.decode("utf-8", "replace"))
        _send(peer, said)

    async def _answer(self, peer: Packets, server: Server, token: bytes) -> None:
        _send(peer, await self._verdict(server, token.decode("ascii", "replace")))

    async def _verdict(self, server: Server, token: str) -> bytes:
        expires_at = self._probe_key.verify(token)
        if expires_at is not None:
            return judging.probe(server.instance, expires_at)
        try:
            verdict = await self._identity.verdict(token)
        except EdgeError as error:
            VERDICTS.labels("unavailable" if isinstance(error, Unavailable) else "refused").inc()
            audit(
                "xrootd login", who=None, allowed=False, reason=error.message, instance=server.instance.name
            )
            return judging.no(error.message)
        said = judging.answer(verdict, server.instance)
        allowed = said.startswith(b"ok ")
        VERDICTS.labels("allowed" if allowed else "refused").inc()
        audit(
            "xrootd login",
            who=verdict.principal.for_log(),
            allowed=allowed,
            reason="mapped" if allowed else said[3:].decode(),
            account=verdict.account,
            instance=server.instance.name,
        )
        if allowed:
            self._remember(server, verdict.principal, verdict.token_expires_at)
        return said

    # --- bans

    def _remember(self, server: Server, principal: Principal, until: float) -> None:
        """Who may have a session there. A session outlives its token, but not for ever in our books."""
        now = time.time()
        if len(server.seen) >= SEEN:
            server.seen = {who: end for who, end in server.seen.items() if end > now}
        server.seen[principal] = max(until, now + CUT_S)

    def _ban(self, covers: Covers, keep_jobs: bool) -> None:
        """Forget everywhere, and end the servers where the banned may have a session open."""
        self._tell_all(b"flush")
        for server in self._servers.values():
            banned = [who for who in server.seen if covers(who)]
            if not banned:
                continue
            for who in banned:
                del server.seen[who]
            others = len(server.seen)
            log.warning(
                "sessions cut for a ban",
                extra={"instance": server.instance.name, "banned": len(banned), "others_interrupted": others},
            )
            CUTS.inc()
            for peer in tuple(server.watching):
                _send(peer, b"quit")

    def _tell_all(self, said: bytes) -> None:
        for server in self._servers.values():
            for peer in tuple(server.watching):
                _send(peer, said)

    async def _beat(self) -> None:
        """While we hear the ban feed, remembered verdicts count."""
        while True:
            if self._identity.not_ready() is None:
                self._tell_all(b"beat")
            await asyncio.sleep(BEAT_S)


def may_speak_for(uid: int, instance: Instance) -> bool:
    """Whether a process of ``uid`` may be this instance."""
    try:
        return uid == pwd.getpwnam(instance.account).pw_uid
    except KeyError:
        return uid == os.getuid()  # self mode of a user without an entry


def _send(peer: Packets, said: bytes) -> None:
    with suppress(Unavailable):
        peer.send(said)
