"""The transport under every listener, plain and TLS, against peers that do all a peer may do."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edged.http.stream import Stream
from edged.http.tlsstream import TlsStream
from edged.identity.testca import ThrowAwayCa

pytestmark = pytest.mark.asyncio

SOON_S = 10.0
LARGE = os.urandom(3 << 20)


class Ours(asyncio.Protocol):
    """What a protocol is told, in order."""

    def __init__(self) -> None:
        self.transport: Stream | None = None
        self.said = bytearray()
        self.paused = 0
        self.writable = asyncio.Event()
        self.writable.set()
        self.ended = False
        self.lost: list[BaseException | None] = []
        self.changed = asyncio.Event()
        self.keep_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Stream)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.said += data
        self.changed.set()

    def pause_writing(self) -> None:
        self.paused += 1
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def eof_received(self) -> bool:
        self.ended = True
        self.changed.set()
        return self.keep_open

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost.append(error)
        self.changed.set()

    @property
    def kind_of_end(self) -> str:
        return "reset" if isinstance(self.lost[0], ConnectionResetError) else "end"

    @property
    def stream(self) -> Stream:
        assert self.transport is not None
        return self.transport

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


class Ground:
    """Connections between a protocol of ours and a blocking client socket in the test's hands."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.farewell_s = SOON_S
        self.server: ssl.SSLContext | None = None
        if kind != "plain":
            ca = ThrowAwayCa(directory / "ca")
            host = ca.host("localhost")
            version = ssl.TLSVersion.TLSv1_2 if kind == "TLS 1.2" else ssl.TLSVersion.TLSv1_3
            self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.server.load_cert_chain(host.certificate, host.key)
            self.server.options |= ssl.OP_NO_RENEGOTIATION
            self.server.minimum_version = self.server.maximum_version = version
            self.client = ssl.create_default_context(cafile=str(ca.file))
            self.client.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        self.listener = socket.create_server(("127.0.0.1", 0))

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    async def begun(self, sock: socket.socket, protocol: Ours, within_s: float = SOON_S) -> Stream:
        sock.setblocking(False)
        if self.server is None:
            stream = Stream(sock, protocol)
        else:
            stream = TlsStream(sock, protocol, self.server, farewell_s=self.farewell_s)
            await stream.handshake(within_s)
        stream.begin()
        return stream

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[Ours, socket.socket]]:
        raw = socket.create_connection(self.listener.getsockname())
        accepted, _ = self.listener.accept()
        ours = Ours()
        begun = asyncio.create_task(self.begun(accepted, ours))
        raw.settimeout(SOON_S)
        theirs = await asyncio.to_thread(self._secured, raw)
        await begun
        try:
            yield ours, theirs
        finally:
            ours.stream.abort()
            theirs.close()
            await ours.until(lambda: bool(ours.lost))

    def _secured(self, raw: socket.socket) -> socket.socket:
        return raw if self.server is None else self.client.wrap_socket(raw, server_hostname="localhost")


@pytest.fixture(params=["plain", "TLS 1.2", "TLS 1.3"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    here = Ground(request.param, tmp_path)
    yield here
    here.listener.close()


def _received(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (more := sock.recv(1 << 16)):
        data += more
    return bytes(data)


async def test_bytes_come_and_go_both_ways_at_once(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        received = asyncio.create_task(asyncio.to_thread(_received, theirs, len(LARGE)))
        # two threads on one SSLSocket are not safe: what it sends is small against its buffers
        theirs.sendall(LARGE[:20000])
        for start in range(0, len(LARGE), 100_000):
            ours.stream.write(LARGE[start : start + 100_000])
            async with asyncio.timeout(SOON_S):
                await ours.writable.wait()
        assert await received == LARGE
        await ours.until(lambda: len(ours.said) == 20000)
        assert ours.said == LARGE[:20000]


async def test_a_large_upload_arrives_whole_through_pauses(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        sending = asyncio.create_task(asyncio.to_thread(theirs.sendall, LARGE))
        while len(ours.said) < len(LARGE):
            before = len(ours.said)
            await ours.until(lambda: len(ours.said) > before)  # noqa: B023 - awaited at once
            ours.stream.pause_reading()
            held = len(ours.said)
            await asyncio.to_thread(lambda: None)  # other turns of the loop
            assert len(ours.said) == held, "nothing comes while paused"
            ours.stream.resume_reading()
        await sending
        assert ours.said == LARGE


async def test_who_does_not_read_pauses_the_writer_and_is_resumed(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        ours.stream.write(LARGE * 8)
        assert ours.paused == 1
        assert ours.stream.get_write_buffer_size() > 0
        ours.stream.write(b"and this")
        assert ours.paused == 1, "told once"
        wanted = LARGE * 8 + b"and this"
        assert await asyncio.to_thread(_received, theirs, len(wanted)) == wanted
        async with asyncio.timeout(SOON_S):
            await ours.writable.wait()
        assert ours.stream.get_write_buffer_size() == 0


async def test_close_sends_all_and_says_goodbye(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        if ground.kind != "plain":
            theirs.sendall(b"unread " * 1000)  # closing now would reset the connection, and lose what we sent
            ours.stream.pause_reading()
        ours.stream.write(LARGE)
        ours.stream.close()
        ours.stream.write(b"nothing after the end")
        if ground.kind == "plain":
            received = await asyncio.to_thread(_received, theirs, len(LARGE))
            assert received == LARGE
        else:
            received = await asyncio.to_thread(
                _received, theirs, len(LARGE) + 1
            )  # to close_notify, or it raises
            assert received == LARGE
            assert ours.lost == [], "until the peer has ended too"
            theirs.close()
        await ours.until(lambda: bool(ours.lost))
        assert ours.lost == [None]
        assert ours.stream.is_closing()


async def test_abort_is_seen_as_broken(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        ours.stream.write(b"some")
        ours.stream.abort()
        await ours.until(lambda: bool(ours.lost))
        assert ours.lost == [None]
        if ground.kind == "plain":
            assert await asyncio.to_thread(_received, theirs, 5) == b"some"
        else:
            assert isinstance(theirs, ssl.SSLSocket)
            theirs.suppress_ragged_eofs = False  # type: ignore[attr-defined]
            with pytest.raises(ssl.SSLError, match=r"EOF|eof"):
                await asyncio.to_thread(_received, theirs, 5)


@pytest.mark.parametrize("goodbye", [True, False])
async def test_the_peers_end_closes(ground: Ground, goodbye: bool) -> None:
    async with ground.connected() as (ours, theirs):
        theirs.sendall(b"last words")
        if goodbye and isinstance(theirs, ssl.SSLSocket):
            theirs.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                theirs.unwrap()
        else:
            theirs.shutdown(socket.SHUT_WR)
        await ours.until(lambda: ours.ended)
        assert ours.said == b"last words"
        theirs.close()
        await ours.until(lambda: bool(ours.lost))
        assert ours.lost == [None]


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def test_a_reset_ends_it_though_bytes_came_before(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        theirs.sendall(b"x" * 1000)
        _reset(theirs)
        await ours.until(lambda: bool(ours.lost))
        assert ours.kind_of_end == "reset"


async def test_a_reset_is_met_by_who_only_writes(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        ours.stream.pause_reading()
        ours.stream.write(LARGE * 8)
        assert ours.paused
        _reset(theirs)
        await ours.until(lambda: bool(ours.lost))
        assert isinstance(ours.lost[0], OSError)
        assert ours.stream.get_write_buffer_size() == 0


async def test_a_body_is_pulled_into_blocks(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        ours.stream.pause_reading()
        sending = asyncio.create_task(asyncio.to_thread(theirs.sendall, LARGE))
        got, block = bytearray(), memoryview(bytearray(300_000))
        async with asyncio.timeout(SOON_S):
            while len(got) < len(LARGE):
                count = ours.stream.receive_into(block)
                if count is None:
                    await ours.stream.readable()
                    continue
                assert count
                got += block[:count]
        assert got == LARGE
        assert ours.said == b""
        await sending
        theirs.sendall(b"then as before")
        ours.stream.resume_reading()
        await ours.until(lambda: ours.said == b"then as before")


async def test_who_pulls_meets_the_end_and_a_close(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        ours.stream.pause_reading()
        theirs.sendall(b"xyz")
        theirs.shutdown(socket.SHUT_WR)
        block, got = memoryview(bytearray(100)), 0
        async with asyncio.timeout(SOON_S):
            while (count := ours.stream.receive_into(block)) != 0:
                got += count or 0
                if count is None:
                    await ours.stream.readable()
        assert got == 3
    async with ground.connected() as (ours, _):
        ours.stream.pause_reading()
        waiting = asyncio.create_task(ours.stream.readable())
        await asyncio.to_thread(lambda: None)
        ours.stream.abort()
        async with asyncio.timeout(SOON_S):
            await waiting
        with pytest.raises(ConnectionResetError):
            ours.stream.receive_into(block)


async def test_who_waits_for_bytes_may_be_cancelled(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        ours.stream.pause_reading()
        waiting = asyncio.create_task(ours.stream.readable())
        await asyncio.to_thread(lambda: None)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        ours.stream.resume_reading()
        theirs.sendall(b"still here")
        await ours.until(lambda: ours.said == b"still here")


async def test_a_flood_leaves_others_their_turn(ground: Ground) -> None:
    async with ground.connected() as (loud, flooding), ground.connected() as (quiet, asking):
        stop = asyncio.Event()

        def flood() -> None:
            try:
                while not stop.is_set():
                    flooding.sendall(LARGE[: 1 << 20])
            except OSError:
                return

        pushing = asyncio.create_task(asyncio.to_thread(flood))
        await loud.until(lambda: len(loud.said) > 1 << 20)
        asking.sendall(b"and I?")
        await quiet.until(lambda: quiet.said == b"and I?")
        stop.set()
        loud.stream.abort()
        await pushing


async def test_a_peer_as_fast_as_we_are_leaves_others_their_turn(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        received = asyncio.create_task(asyncio.to_thread(_received, theirs, 32 << 20))
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            asyncio.get_running_loop().call_soon(turn)

        turn()
        for _ in range(512):
            ours.stream.write(LARGE[: 1 << 16])
            async with asyncio.timeout(SOON_S):
                await ours.writable.wait()
        assert turns >= 31, "one a MiB at least, however fast it takes them"
        assert len(await received) == 32 << 20


async def test_a_protocol_that_fails_ends_its_connection_only(ground: Ground) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    async with ground.connected() as (ours, theirs), ground.connected() as (other, asking):

        class Failing(Ours):
            def data_received(self, data: bytes) -> None:
                raise ValueError(data)

        failing = Failing()
        ours.stream.set_protocol(failing)
        theirs.sendall(b"x")
        await failing.until(lambda: bool(failing.lost))
        assert told == ["data_received failed"]
        asking.sendall(b"here")
        await other.until(lambda: other.said == b"here")
        ours.lost = failing.lost


async def test_what_is_told_of_a_connection(ground: Ground) -> None:
    async with ground.connected() as (ours, theirs):
        stream = ours.stream
        assert stream.get_extra_info("peername") == theirs.getsockname()
        assert stream.get_extra_info("sockname") == theirs.getpeername()
        assert stream.get_extra_info("socket").fileno() > 0
        assert stream.get_extra_info("anything", "default") == "default"
        assert (stream.get_extra_info("ssl_object") is None) == (ground.kind == "plain")
        assert stream.get_extra_info("sslcontext") is ground.server
        assert stream.can_write_eof() == (ground.kind == "plain")


# --- TLS alone


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Ground]:
    here = Ground("TLS 1.3", tmp_path)
    yield here
    here.listener.close()


async def test_a_handshake_has_its_time(secure: Ground) -> None:
    with socket.create_connection(secure.listener.getsockname()) as silent:
        accepted, _ = secure.listener.accept()
        with pytest.raises(TimeoutError):
            await secure.begun(accepted, Ours(), within_s=0.1)
        silent.settimeout(SOON_S)
        assert silent.recv(100) == b"", "and the socket is closed"


async def test_half_a_handshake_has_its_time(secure: Ground) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = secure.client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with socket.create_connection(secure.listener.getsockname()) as slow:
        accepted, _ = secure.listener.accept()
        slow.sendall(outgoing.read()[:100])
        with pytest.raises(TimeoutError):
            await secure.begun(accepted, Ours(), within_s=0.1)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05garbage" * 100, b""])
async def test_what_is_no_handshake_ends_at_once(secure: Ground, said: bytes) -> None:
    with socket.create_connection(secure.listener.getsockname()) as wrong:
        accepted, _ = secure.listener.accept()
        wrong.sendall(said)
        wrong.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError):
            await secure.begun(accepted, Ours())


async def test_a_peer_that_never_ends_is_not_waited_for(secure: Ground) -> None:
    secure.farewell_s = 0.1
    async with secure.connected() as (ours, theirs):
        ours.stream.write(b"bye")
        ours.stream.close()
        await ours.until(lambda: bool(ours.lost))
        assert await asyncio.to_thread(theirs.recv, 10) == b"bye"


@pytest.mark.parametrize(
    ("version", "command"), [("-tls1_3", b"K\n"), ("-tls1_3", b"k\n"), ("-tls1_2", b"R\n")]
)
async def test_openssl_changes_keys_and_may_not_renegotiate(
    tmp_path: Path, version: str, command: bytes
) -> None:
    here = Ground("TLS 1.3" if version == "-tls1_3" else "TLS 1.2", tmp_path)
    client = subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{here.port}", version],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert client.stdin is not None
    try:
        accepted, _ = await asyncio.to_thread(here.listener.accept)
        ours = Ours()
        stream = await here.begun(accepted, ours)
        client.stdin.write(b"before\n")
        client.stdin.flush()
        await ours.until(lambda: ours.said == b"before\n")
        client.stdin.write(command)
        client.stdin.flush()
        if command == b"R\n":
            await ours.until(lambda: bool(ours.lost))
            return
        assert client.stderr is not None
        async with asyncio.timeout(SOON_S):  # commands are read one at a time
            while await asyncio.to_thread(client.stderr.readline) != b"KEYUPDATE\n":
                pass
        stream.write(b"answer\n")
        client.stdin.write(b"after\n")
        client.stdin.flush()
        await ours.until(lambda: ours.said.endswith(b"after\n"))
        assert not ours.lost
        stream.abort()
    finally:
        client.kill()
        client.communicate()
        here.listener.close()
