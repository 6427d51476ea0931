"""Names to addresses: /etc/hosts, then the DNS; remembered for as long as the answer says.

Not getaddrinfo: it takes ``0x7f000001`` for an address, says nothing of lifetimes, and needs a thread
for each question. Search domains are not applied: a job's name for a place must be a full one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.egress.addresses import Address
from edged.egress.dns import Answer, Type, parse, query
from edged.errors import BadRequest, Busy, EdgeError, NotFound, Upstream, UpstreamTimeout

_TRIES = 2
_LONGEST_S, _SHORTEST_S, _NOT_FOUND_S = 300, 1, 5
_REMEMBERED = 262_144  # addresses, and names: an answer may hold thousands, and a job asks for what it likes
_OF_A_NAME = 64  # addresses of each kind

HOSTS = Path("/etc/hosts")
RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The addresses of a name, IPv6 and IPv4, of a great many the first. ``ttl_s``: how long the DNS stands by it."""

    addresses: tuple[Address, ...]
    ttl_s: int


class Names:
    """Looks names up, each only once at a time. ``servers``: ``addr`` or ``addr:port``; () → resolv.conf."""

    def __init__(
        self,
        servers: Sequence[str] = (),
        *,
        timeout_s: float = 5.0,
        lookups: int = 256,
        remembered: int = _REMEMBERED,
        hosts: Path = HOSTS,
        resolv_conf: Path = RESOLV_CONF,
    ) -> None:
        self._servers = [_server(text) for text in servers] or _configured(resolv_conf)
        self._hosts = _hosts(hosts)
        self._timeout_s = timeout_s
        self._lookups = lookups
        self._most = remembered
        self._held = 0  # of them
        self._known: dict[str, tuple[float, Resolved]] = {}
        self._asking: dict[str, asyncio.Task[Resolved]] = {}

    def known(self, host: str) -> Resolved | None:
        """The remembered answer, without asking anybody."""
        local = self._hosts.get(host)
        if local is not None:
            return local
        entry = self._known.get(host)
        if entry is None or entry[0] <= time.monotonic():
            return None
        return entry[1]

    async def resolve(self, host: str, *, fresh: bool = False) -> Resolved:
        """The addresses of ``host``. Raises NotFound, Upstream, UpstreamTimeout or Busy."""
        known = None if fresh and host not in self._hosts else self.known(host)
        if known is not None:
            if not known.addresses:
                raise NotFound("no such host")
            return known
        task = self._asking.get(host)
        if task is None:
            if len(self._asking) >= self._lookups:
                raise Busy("too many name look-ups under way")
            task = self._asking[host] = asyncio.get_running_loop().create_task(self._ask(host))
            task.add_done_callback(lambda done: self._asked(host, done))
        return await asyncio.shield(task)  # others may wait for the same answer

    async def aclose(self) -> None:
        """End the look-ups under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _asked(self, host: str, task: asyncio.Task[Resolved]) -> None:
        self._asking.pop(host, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, NotFound):
            self._remember(host, Resolved((), _NOT_FOUND_S))

    async def _ask(self, host: str) -> Resolved:
        if not self._servers:
            raise Upstream("no DNS server is configured")
        four, six = await asyncio.gather(
            self._one(host, Type.A), self._one(host, Type.AAAA), return_exceptions=True
        )
        answers = [answer for answer in (six, four) if isinstance(answer, Answer)]
        addresses = tuple(address for answer in answers for address in answer.addresses[:_OF_A_NAME])
        if addresses:
            found = Resolved(addresses, min(a.ttl for a in answers if a.addresses))
            self._remember(host, found)
            return found
        for failure in (four, six):
            if isinstance(failure, BaseException):
                raise failure
        raise NotFound("no such host")

    async def _one(self, host: str, kind: Type) -> Answer:
        error: EdgeError = UpstreamTimeout("the DNS did not answer in time")
        for attempt in range(_TRIES * len(self._servers)):
            server = self._servers[attempt % len(self._servers)]
            number = secrets.randbelow(65536)
            message = query(number, host, kind)
            try:
                async with asyncio.timeout(self._timeout_s / (_TRIES * len(self._servers))):
                    answer = await _udp(server, message, number, host, kind)
                    return await _tcp(server, message, number, host, kind) if answer.truncated else answer
            except TimeoutError:
                continue
            except (OSError, BadRequest, asyncio.IncompleteReadError) as failure:
                error = Upstream("the DNS answered with a failure", detail=str(failure))
        raise error

    def _remember(self, host: str, found: Resolved) -> None:
        life = min(max(found.ttl_s, _SHORTEST_S), _LONGEST_S)
        if host in self._known:
            self._forget(host)
        self._known[host] = (time.monotonic() + life, found)
        self._held += 1 + len(found.addresses)
        while self._held > self._most:
            self._forget(next(iter(self._known)))

    def _forget(self, host: str) -> None:
        self._held -= 1 + len(self._known.pop(host)[1].addresses)


class _Question(asyncio.DatagramProtocol):
    """One question from a port of its own (RFC 5452 §9.2); datagrams that do not fit it are ignored."""

    def __init__(self, number: int, host: str, kind: Type) -> None:
        self._question = (number, host, kind)
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _addr: object) -> None:
        if self.answer.done():
            return
        try:
            self.answer.set_result(parse(data, *self._question))
        except BadRequest as error:
            if "server answered" in error.message:
                self.answer.set_exception(error)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _udp(server: tuple[str, int], message: bytes, number: int, host: str, kind: Type) -> Answer:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Question(number, host, kind), remote_addr=server
    )
    try:
        transport.sendto(message)
        return await protocol.answer
    finally:
        transport.close()


async def _tcp(server: tuple[str, int], message: bytes, number: int, host: str, kind: Type) -> Answer:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(len(message).to_bytes(2, "big") + message)
        length = int.from_bytes(await reader.readexactly(2), "big")
        return parse(await reader.readexactly(length), number, host, kind)
    finally:
        writer.close()


def _server(text: str) -> tuple[str, int]:
    try:
        return str(ipaddress.ip_address(text.strip("[]"))), 53
    except ValueError:
        host, _, port = text.rpartition(":")
        return str(ipaddress.ip_address(host.strip("[]"))), int(port)


def _configured(file: Path) -> list[tuple[str, int]]:
    """``nameserver`` lines of resolv.conf(5), at most three as in the C library."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    return [_server(word[1]) for word in words if len(word) > 1 and word[0] == "nameserver"][:3]


def _hosts(file: Path) -> dict[str, Resolved]:
    """hosts(5); lines that are none are passed over."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, tuple[Address, ...]] = {}
    for line in lines:
        words = line.partition("#")[0].split()
        try:
            address = ipaddress.ip_address(words[0]) if len(words) > 1 else None
        except ValueError:
            continue
        if address is not None:
            for name in words[1:]:
                found[name.lower()] = (*found.get(name.lower(), ()), address)
    return {name: Resolved(addresses, _LONGEST_S) for name, addresses in found.items()}
