"""A server is asked whether it speaks XRootD's protocol, without a client of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.storage.xrootd.greeting import greet
from services.storage.xrootd.probe import Wish
from tests.support.storage import free_port, wait_for_port

pytestmark = pytest.mark.asyncio


def _wish(port: int) -> Wish:
    return Wish(url=f"roots://127.0.0.1:{port}", token="", path="/")


async def _said(port: int, deadline_s: float = 5.0) -> tuple[bool, str]:
    (outcome,) = await greet(_wish(port), deadline_s=deadline_s)
    assert outcome.step == "answer"
    return outcome.ok, outcome.said


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that the server's user reaches, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="edged-xrd-") as found:
        os.chmod(found, 0o777)
        yield Path(found)


async def test_the_real_server_answers(scratch: Path) -> None:
    if shutil.which("xrootd") is None:
        pytest.skip("not installed: xrootd-server (see .ci/packages.txt)")
    port = free_port()
    config = scratch / "xrootd.cfg"
    config.write_text(
        f"all.export /\noss.localroot {scratch}\nxrd.port {port}\n"
        f"all.adminpath {scratch}/admin\nall.pidpath {scratch}/run\n"
    )
    become = ("-R", "xrootd") if os.geteuid() == 0 else ()  # it refuses to be root
    process = await asyncio.create_subprocess_exec(
        "xrootd", "-c", str(config), "-l", str(scratch / "log"), *become
    )
    try:
        await asyncio.to_thread(wait_for_port, port)
        assert await _said(port) == (True, "")
    finally:
        process.terminate()
        await process.wait()
    ok, said = await _said(port)
    assert not ok and "Connect call failed" in said


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks another protocol"),
        (b"\0\0", "it ends the connection"),
        (b"", "it ends the connection"),
    ],
)
async def test_others_are_told(answer: bytes, told: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(20)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        assert await _said(server.sockets[0].getsockname()[1]) == (False, told)


async def test_who_says_nothing_is_not_waited_for() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        assert await _said(server.sockets[0].getsockname()[1], 0.2) == (False, "no answer in time")


async def test_the_client_is_found_where_it_is_installed() -> None:
    """The locks of the tests have it: here every other test of the view is probed by it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from services.storage.xrootd.greeting import has_client; print(has_client())",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert (await process.communicate())[0] == b"True\n"
