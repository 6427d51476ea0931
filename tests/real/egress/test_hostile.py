"""What a job, or whoever owns a name it asks for, could use the gate up with."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edged.egress.names import Names
from tests.real.egress.test_proxy import ANYWHERE, connect, gate_and_echo
from tests.support.egress import echo, gate_running, server, settings
from tests.support.nameserver import Server


async def test_names_with_many_addresses_are_not_remembered_without_end() -> None:
    many = [str(ipaddress.IPv4Address("198.51.100.0") + n) for n in range(50)]
    zones = {f"n{n}.example": [many] for n in range(4)}
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Server(zones), local_addr=("127.0.0.1", 0)
    )
    port = transport.get_extra_info("sockname")[1]
    names = Names((f"127.0.0.1:{port}",), remembered=120, hosts=Path("/dev/null"))
    for name in [*zones, "n3.example"]:
        assert len((await names.resolve(name)).addresses) == 50
    assert [name for name in zones if names.known(name) is not None] == ["n2.example", "n3.example"]
    await names.aclose()
    transport.close()


async def test_one_request_is_no_scan_of_all_addresses_of_a_name(tmp_path: Path) -> None:
    """The first that answers is among the first sixteen, or there is none."""
    hosts = tmp_path / "hosts"
    lines = [f"127.0.2.{n} near\n" for n in range(1, 17)] + [f"127.0.2.{n} far\n" for n in range(0, 17)]
    hosts.write_text("".join(lines))
    async with (
        server(echo, "127.0.2.16") as port,
        gate_running(settings(ANYWHERE), Names(hosts=hosts)) as gate,
    ):
        head, (_, writer) = await connect(gate, f"near:{port}")
        assert head.startswith(b"HTTP/1.1 200 ")
        writer.close()
        head, (_, writer) = await connect(gate, f"far:{port}")
        assert head.startswith(b"HTTP/1.1 502 ")
        writer.close()


@contextmanager
def no_file_left() -> Iterator[None]:
    """Nothing can be opened in this process while entered."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    holes = [os.dup(0)]
    while holes[-1] < highest:
        holes.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in holes:
            os.close(fd)


async def test_a_gate_without_a_descriptor_rests_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """It neither spins nor fills the log; who waited is served."""
    async with gate_and_echo() as (gate, port):
        with socket.create_connection(("127.0.0.1", gate.port)) as client:
            client.setblocking(False)
            with no_file_left():
                client.send(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                before = os.times()
                for _ in range(10):
                    await asyncio.sleep(0.05)
                used_s = os.times().user + os.times().system - before.user - before.system
            told = [record for record in caplog.records if "no room" in record.message]
            assert 1 <= len(told) <= 10
            assert used_s < 0.3
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(10):
                assert (await loop.sock_recv(client, 1000)).startswith(b"HTTP/1.1 200 ")
