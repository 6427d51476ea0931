"""CONNECT, SOCKS5 and plain http on one port, with real sockets on loopback."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.egress.outcomes import Outcome
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
