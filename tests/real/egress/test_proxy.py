"""CONNECT, SOCKS5 and plain http on one port, with real sockets on loopback."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import http.server
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from edged.config import parse
from edged.egress import job_environment
from edged.egress.outcomes import Outcome
from edged.identity.words import JobId
from tests.support.egress import TOKEN, Running, echo, gate_running, server, settings
from tests.support.waiting import until_async

ANYWHERE = {
    "destination": [{"name": "world", "networks": ["127.0.0.0/8"], "ports": ["1-65535"]}],
    "rule": [{"name": "all", "to": ["world"]}],
}

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(gate: Running, target: str, fields: str = "", early: bytes = b"") -> tuple[bytes, Pair]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n".encode() + early)
    head = await reader.readuntil(b"\r\n\r\n")
    return head, (reader, writer)


def basic(job: str, token: str = TOKEN) -> str:
    return f"Proxy-Authorization: Basic {base64.b64encode(f'{job}:{token}'.encode()).decode()}\r\n"


@asynccontextmanager
async def gate_and_echo(**more: object) -> AsyncIterator[tuple[Running, int]]:
    async with server(echo) as port, gate_running(settings({**ANYWHERE, **more})) as gate:
        yield gate, port


async def test_connect_moves_bytes_both_ways_and_counts_them() -> None:
    async with gate_and_echo() as (gate, port):
        head, (reader, writer) = await connect(gate, f"127.0.0.1:{port}", early=b"early ")
        assert head.startswith(b"HTTP/1.1 200 ")
        writer.write(b"late")
        writer.write_eof()
        assert await reader.read() == b"early late"
        await until_async(lambda: _none_open(gate), "tunnel closed", 5)
        (figures,) = gate.accounts.take()
        assert (figures.up, figures.down, figures.connections) == (10, 10 + len(head), 1)
        assert figures.key.destination == "world"


@pytest.mark.parametrize("size", [1, 70_000, 300_000, 20_000_000])
async def test_bulk_arrives_unchanged_through_copy_and_splice(size: int) -> None:
    data = os.urandom(size)
    async with gate_and_echo() as (gate, port):
        _, (reader, writer) = await connect(gate, f"127.0.0.1:{port}")

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            got = await reader.read(-1)
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
        assert gate.gate.pipes.made == (2 if size > 1_000_000 else gate.gate.pipes.made)


async def test_default_is_to_refuse_and_says_why() -> None:
    async with server(echo) as port, gate_running(settings({})) as gate:
        head, (reader, _) = await connect(gate, f"127.0.0.1:{port}")
        assert head.startswith(b"HTTP/1.1 403 ")
        assert b"no rule lets you reach" in await reader.read()
        (figures,) = gate.accounts.take()
        assert figures.refused == {Outcome.NO_RULE: 1}


async def test_refused_port_sends_a_gateway_error() -> None:
    async with server(echo) as port:
        pass
    async with gate_running(settings(ANYWHERE)) as gate:
        head, _ = await connect(gate, f"127.0.0.1:{port}")
        assert head.startswith(b"HTTP/1.1 502 ")


async def _none_open(gate: Running) -> bool:
    return not gate.gate.tunnels


async def test_half_close_together_with_the_head_reaches_the_other_side() -> None:
    async with gate_and_echo() as (gate, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: a\r\n\r\nall at once".encode())
        writer.write_eof()
        assert (await reader.read()).endswith(b"\r\n\r\nall at once")


async def test_more_early_bytes_than_a_head_may_have() -> None:
    data = os.urandom(100_000)
    async with gate_and_echo() as (gate, port):
        _, (reader, _) = await connect(gate, f"127.0.0.1:{port}", early=data)
        assert await reader.readexactly(len(data)) == data


async def test_a_server_that_speaks_first_is_heard() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        writer.close()

    async with server(greet) as port, gate_running(settings(ANYWHERE)) as gate:
        _, (reader, _) = await connect(gate, f"127.0.0.1:{port}")
        assert await reader.read() == b"220 ready\r\n"


async def socks(
    gate: Running, port: int, login: tuple[str, str] | None = None, command: int = 1
) -> tuple[int, Pair]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
    writer.write(b"\x05\x02\x00\x02" if login else b"\x05\x01\x00")
    if await reader.readexactly(2) == b"\x05\x02":
        assert login is not None
        user, password = (word.encode() for word in login)
        writer.write(bytes((1, len(user))) + user + bytes((len(password),)) + password)
        assert await reader.readexactly(2) == b"\x01\x00"
    writer.write(bytes((5, command, 0, 1, 127, 0, 0, 1)) + port.to_bytes(2, "big"))
    return (await reader.readexactly(10))[1], (reader, writer)


async def test_socks_by_address_and_by_token() -> None:
    async with gate_and_echo() as (gate, port):
        gate.voucher.job("job-1")
        for login in (None, ("job-1", TOKEN)):
            code, (reader, writer) = await socks(gate, port, login)
            assert code == 0
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        assert {figures.key.job for figures in gate.accounts.take()} == {"", "job-1"}


@pytest.mark.parametrize("command", [2, 3])
async def test_socks_bind_and_udp_are_refused_cleanly(command: int) -> None:
    async with gate_and_echo() as (gate, port):
        code, (reader, _) = await socks(gate, port, command=command)
        assert code == 7
        assert await reader.read() == b""


async def test_job_token_decides_and_is_asked_for() -> None:
    rules = {"rule": [{"name": "cms", "to": ["world"], "vos": ["cms"]}]}
    source = [{"name": "nodes", "networks": ["127.0.0.0/8"], "require_token": True}]
    async with gate_and_echo(**rules, source=source) as (gate, port):
        gate.voucher.job("mine")
        gate.voucher.job("theirs", vo="atlas", token="other")
        gate.voucher.job("elsewhere", nodes=("192.0.2.7",))
        target = f"127.0.0.1:{port}"
        assert (await connect(gate, target, basic("mine")))[0].startswith(b"HTTP/1.1 200 ")
        head, _ = await connect(gate, target)
        assert head.startswith(b"HTTP/1.1 407 ") and b"proxy-authenticate: Basic" in head
        assert (await connect(gate, target, basic("mine", "other")))[0].startswith(b"HTTP/1.1 407 ")
        assert (await connect(gate, target, basic("theirs", "other")))[0].startswith(b"HTTP/1.1 403 ")
        assert (await connect(gate, target, basic("elsewhere")))[0].startswith(b"HTTP/1.1 407 ")
        gate.voucher.trouble = "feed lost"
        assert gate.gate.not_ready() == "feed lost"


async def test_a_jobs_end_and_a_ban_close_its_tunnels_at_once() -> None:
    async with gate_and_echo() as (gate, port):
        target = f"127.0.0.1:{port}"
        stops: dict[str, Callable[[], None]] = {
            "one": lambda: gate.voucher.end("one"),
            "two": lambda: gate.voucher.ban("subject-of-two"),
        }
        for name, stop in stops.items():
            gate.voucher.job(name)
            _, (reader, _) = await connect(gate, target, basic(name))
            _, (other, other_writer) = await connect(gate, target)
            async with asyncio.timeout(1):
                stop()
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            other_writer.write(b"still")
            assert await other.readexactly(5) == b"still"
            assert (await connect(gate, target, basic(name)))[0].startswith(b"HTTP/1.1 407 ")


async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the request it got, and keeps the connection: our own end must do."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")), 0
    )
    body = await reader.readexactly(length)
    got = head + body
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: keep-alive, x-drop\r\nX-Drop: 1\r\n\r\n"
        % len(got)
    )
    writer.write(got)
    await writer.drain()
    await reader.read()
    writer.close()


async def test_plain_http_is_rewritten_for_its_origin() -> None:
    async with server(origin) as port, gate_running(settings(ANYWHERE)) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        fields = "Host: elsewhere\r\nProxy-Connection: keep-alive\r\nConnection: x-secret\r\nX-Secret: 1\r\n"
        fields += f"X-Kept: 1\r\n{basic('nobody')}Content-Length: 4\r\n\r\nbodyGET"
        writer.write(f"POST http://127.0.0.1:{port}/a?b HTTP/1.1\r\n{fields}".encode())
        gate.voucher.job("nobody")
        head = await reader.readuntil(b"\r\n\r\n")
        got = await reader.readuntil(b"body")
        assert b"via: 1.1 edged-TEST" in head and b"connection: close" in head and b"x-drop" not in head
        assert got.startswith(f"POST /a?b HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n".encode())
        assert b"x-kept: 1" in got and b"via: 1.1 edged-TEST" in got
        assert not any(word in got for word in (b"x-secret", b"proxy-", b"elsewhere", b"GET"))


@pytest.mark.parametrize(
    "head",
    [
        "GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET http://127.0.0.1:1/ HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: x\r\n\r\n",
        "POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "GET http://127.0.0.1:1/ HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET http://u:p@127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\nVia: 1.1 edged-TEST\r\n\r\n",
        "CONNECT 127.1:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT 0x7f000001:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT 2130706433:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT 127.0.0.1 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT 127.0.0.1:99999 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: a\r\nX: a\nb\r\n\r\n",
        "CONNECT 127.0.0.1:443 HTTP/2.0\r\nHost: a\r\n\r\n",
        "\x04 nonsense\r\n\r\n",
        "CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: a\r\nX: " + "a" * 20000,
    ],
)
async def test_what_has_two_meanings_is_refused(head: str) -> None:
    async with gate_running(settings(ANYWHERE)) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(head.encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        assert [figures.refused for figures in gate.accounts.take()] == [{Outcome.MALFORMED: 1}]


async def test_a_slow_head_is_cut() -> None:
    async with gate_and_echo(limits={"head_s": 0.3}) as (gate, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(b"CONNECT ")
        async with asyncio.timeout(5):
            assert await reader.read() == b""


async def test_limits_connections_rate_and_quota() -> None:
    rule = {"name": "all", "to": ["world"], "per": "job"}
    async with gate_and_echo(rule=[{**rule, "connections": 1}]) as (gate, port):
        gate.voucher.job("a")
        gate.voucher.job("b")
        first, _ = await connect(gate, f"127.0.0.1:{port}", basic("a"))
        second, _ = await connect(gate, f"127.0.0.1:{port}", basic("a"))
        other, _ = await connect(gate, f"127.0.0.1:{port}", basic("b"))
        assert [head.split()[1] for head in (first, second, other)] == [b"200", b"429", b"200"]
    async with gate_and_echo(rule=[{**rule, "rate": 400_000}]) as (gate, port):
        _, (reader, writer) = await connect(gate, f"127.0.0.1:{port}")
        started = asyncio.get_running_loop().time()
        writer.write(bytes(400_000))
        await reader.readexactly(400_000)
        assert 0.8 < asyncio.get_running_loop().time() - started < 4


async def test_a_quota_ends_the_tunnel_and_refuses_the_next() -> None:
    rule = {"name": "all", "to": ["world"], "quota": 100_000}
    async with gate_and_echo(rule=[rule]) as (gate, port):
        _, (reader, writer) = await connect(gate, f"127.0.0.1:{port}")
        writer.write(bytes(200_000))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(200_000)
        await until_async(lambda: _none_open(gate), "tunnel closed", 5)
        assert (await connect(gate, f"127.0.0.1:{port}"))[0].startswith(b"HTTP/1.1 429 ")
        moved = sum(figures.up + figures.down for figures in gate.accounts.take())
        assert moved <= 101_000


async def test_idle_tunnels_end() -> None:
    async with gate_and_echo(limits={"idle_s": 0.5}) as (gate, port):
        _, (reader, _) = await connect(gate, f"127.0.0.1:{port}")
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_relay_with_proxy_protocol_passes_over_the_dead_upstream() -> None:
    async with server(echo) as dead:
        pass
    relay = {"name": "collector", "listen": ["127.0.0.1:0"], "to": [f"127.0.0.1:{dead}"], "proxy_protocol": 1}
    async with server(echo) as port:
        relay["to"] = [f"127.0.0.1:{dead}", f"127.0.0.1:{port}"]
        async with gate_running(settings({**ANYWHERE, "relay": [relay]})) as gate:
            for _ in range(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", gate.ports[1])
                own = writer.get_extra_info("sockname")[1]
                writer.write(b"hello")
                line = await reader.readline()
                assert line == f"PROXY TCP4 127.0.0.1 127.0.0.1 {own} {gate.ports[1]}\r\n".encode()
                assert await reader.readexactly(5) == b"hello"
            assert gate.gate.not_ready() is None


async def test_reload_closes_what_is_no_longer_allowed() -> None:
    async with gate_and_echo() as (gate, port):
        _, (reader, _) = await connect(gate, f"127.0.0.1:{port}")
        await gate.gate.reload(settings({}))
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_reload_reaches_those_that_are_still_dialling() -> None:
    with full_listener() as (listener, waiting):
        port = listener.getsockname()[1]
        async with gate_running(settings(ANYWHERE)) as gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await until_async(lambda: _dialling(gate), "the session dials", 5)
            await gate.gate.reload(settings({}))
            for _ in waiting:
                listener.accept()[0].close()  # room: its next SYN gets through
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 403 ")
            writer.close()


async def _dialling(gate: Running) -> bool:
    return any(session._dial is not None for session in gate.gate.sessions)


@contextmanager
def full_listener() -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A listener whose queue is full, and those who fill it: who connects now waits for room."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        waiting: list[socket.socket] = []
        while True:
            sock = stack.enter_context(socket.socket())
            sock.settimeout(0.3)
            try:
                sock.connect(listener.getsockname())
            except TimeoutError:
                sock.close()
                break
            waiting.append(sock)
        yield listener, waiting


async def test_own_listener_is_never_a_destination() -> None:
    async with gate_and_echo() as (gate, _):
        head, (reader, _) = await connect(gate, f"127.0.0.1:{gate.port}")
        assert head.startswith(b"HTTP/1.1 403 ") and b"this gate itself" in await reader.read()


@pytest.mark.parametrize(
    "argv",
    [
        ("curl", "-sSf", "-m", "10", "URL/page"),
        ("curl", "-sSf", "-m", "10", "--proxytunnel", "--proxy-anyauth", "URL/page"),
        ("wget", "-q", "-T", "10", "-O-", "URL/page"),
        ("git", "ls-remote", "URL/repo.git"),
    ],
    ids=" ".join,
)
async def test_real_clients_with_the_variables_of_a_job(argv: tuple[str, ...], tmp_path: Path) -> None:
    """What a job's environment says is enough, also for those who wait to be asked for the token (407)."""
    (tmp_path / "page").write_text("a page")
    for command in (["init", "-q", "--bare", "repo.git"], ["-C", "repo.git", "update-server-info"]):
        await (await asyncio.create_subprocess_exec("git", *command, cwd=tmp_path)).wait()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    origin_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=origin_server.serve_forever)
    thread.start()
    source = [{"name": "nodes", "networks": ["127.0.0.0/8"], "require_token": True}]
    try:
        async with gate_running(settings({**ANYWHERE, "source": source})) as gate:
            gate.voucher.job("job-9")
            told = {
                "egress": {"listen": [f"127.0.0.1:{gate.port}"]},
                "site": {"name": "TEST"},
            }
            variables = job_environment(parse(told), JobId("job-9"), TOKEN, "127.0.0.1")
            without = {name: value for name, value in variables.items() if name.lower() != "no_proxy"}
            url = f"http://127.0.0.1:{origin_server.server_port}"
            process = await asyncio.create_subprocess_exec(
                *(word.replace("URL", url) for word in argv),
                env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **without},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await asyncio.wait_for(process.communicate(), 30)
            assert process.returncode == 0, said
            await until_async(lambda: _none_open(gate), "tunnels closed", 5)
            counted = [figures for figures in gate.accounts.take() if figures.connections]
            assert {figures.key.job for figures in counted} == {"job-9"}
    finally:
        await asyncio.to_thread(origin_server.shutdown)
        origin_server.server_close()
        thread.join()
