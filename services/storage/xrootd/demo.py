"""What the root:// view shows in ``edged demo``: the file that WebDAV wrote, read by XRootD's own client."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import zlib
from pathlib import Path
from typing import Protocol

import aiohttp

from edged.config.xrootd import Xrootd
from edged.demo.context import Demo
from edged.errors import EdgeError
from services.storage.xrootd import building, installation

DATA = b"the same bytes, the same checksum, by either protocol\n" * 20_000
PATH = "/demo/both-views"
READY_S = 45.0
CLIENT_S = 30.0
GATE = "libEdgedGate.so"


class Scene(Protocol):
    """Where the demo plays."""

    @property
    def scratch(self) -> Path: ...


def settings(scene: Scene) -> str:
    """TOML: the view of the demo's export; nothing where xrootd or the means to build the gate are missing."""
    gate = scene.scratch / GATE
    if missing() or not _built(gate):
        return ""
    port, report, cmsd = _ports(3)
    return f"""
[storage.xrootd]
port = {port}
report_port = {report}
cmsd_port = {cmsd}
gate = "{gate}"
probe_s = 5
"""


def missing() -> str:
    """Why there is no root:// view on this machine, or nothing."""
    try:
        installation.look(Xrootd())
        building.compiler()
        building.headers()
    except EdgeError as error:
        return error.message
    return "" if shutil.which("xrdcp") else "no xrdcp: install the package xrootd-client"


async def steps(demo: Demo) -> None:
    """Write by WebDAV, read by root://; write by root://, read by WebDAV."""
    demo.heading("xrootd: the same files as root://")
    storage = demo.config.storage
    if storage is None or storage.xrootd is None:
        demo.write(f"     not shown: {missing() or 'the gate could not be built'}")
        return
    client = Client(demo, storage.xrootd.port)
    adler = f"{zlib.adler32(DATA):08x}"
    async with demo.step("the real xrootd answers") as step:
        step.result = await client.until_ready()
    connector = aiohttp.TCPConnector(ssl=demo.tls())
    headers = {"Authorization": f"Bearer {client.token}"}
    async with aiohttp.ClientSession(demo.url("storage"), headers=headers, connector=connector) as session:
        async with demo.step("upload by WebDAV") as step, session.put(PATH, data=DATA) as answer:
            step.expect(answer.status == 201, f"status {answer.status}")
            step.result = f"{answer.status}, {answer.headers['Digest']}"
        async with demo.step("read it with xrdcp") as step:
            await client.copy(f"{client.url}/{PATH}", str(demo.scratch / "copy"))
            step.expect((demo.scratch / "copy").read_bytes() == DATA, "other bytes")
            step.result = f"{len(DATA)} bytes, the same"
        async with demo.step("its checksum by root://") as step:
            step.result = await client.run("xrdfs", client.url, "query", "checksum", PATH)
            step.expect(adler in step.result, f"expected {adler}")
        async with demo.step("upload with xrdcp") as step:
            await client.copy(str(demo.scratch / "copy"), f"{client.url}/{PATH}-2")
            step.result = "done"
        async with demo.step("read it by WebDAV") as step, session.get(f"{PATH}-2") as answer:
            step.expect(await answer.read() == DATA, "other bytes")
            step.result = f"{answer.status}, {len(DATA)} bytes, the same"
        asked = {"Want-Digest": "adler32"}
        async with (
            demo.step("its checksum by WebDAV") as step,
            session.head(f"{PATH}-2", headers=asked) as answer,
        ):
            step.expect(answer.headers.get("Digest") == f"adler32={adler}", f"expected {adler}")
            step.result = answer.headers["Digest"]
        async with demo.step("refused: a sibling of its scope") as step:
            narrow = demo.token("storage.read:/both", "storage.modify:/both")
            said = await client.run("xrdfs", client.url, "stat", PATH, token=narrow, may_fail=True)
            step.expect("permission denied" in said, said)
            step.result = "permission denied"
        for path in (PATH, f"{PATH}-2"):
            async with session.delete(path) as answer:
                step.expect(answer.status == 204, f"status {answer.status}")


class Client:
    """xrdcp and xrdfs with the demo's token."""

    def __init__(self, demo: Demo, port: int) -> None:
        self._demo = demo
        self.url = f"roots://localhost:{port}"
        self.token = demo.token()
        self._certificates = _hashed(demo)

    async def until_ready(self) -> str:
        """Ask until it answers. Raises AssertionError with its last words."""
        said = ""
        try:
            async with asyncio.timeout(READY_S):
                while "File" not in said and "Path" not in said:
                    said = await self.run("xrdfs", self.url, "stat", "/demo", may_fail=True)
                    if "Path" not in said:
                        await asyncio.sleep(0.3)
        except TimeoutError:
            raise AssertionError(said) from None
        return await self.run("xrdfs", self.url, "query", "config", "version")

    async def copy(self, source: str, target: str) -> None:
        """xrdcp."""
        await self.run("xrdcp", "-s", "-f", source, target)

    async def run(self, *argv: str, token: str = "", may_fail: bool = False) -> str:
        """One command. Raises AssertionError with what it said."""
        environment = {
            **os.environ,
            "BEARER_TOKEN": token or self.token,
            "X509_CERT_DIR": str(self._certificates),
            "XRD_CONNECTIONRETRY": "1",
            "XRD_CONNECTIONWINDOW": "3",
        }
        process = await asyncio.create_subprocess_exec(
            *argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        async with asyncio.timeout(CLIENT_S):
            out, _ = await process.communicate()
        said = out.decode("utf-8", "replace").replace("\0", "").strip()
        if process.returncode and not may_fail:
            raise AssertionError(f"{argv[0]}: {said}")
        return said


def _hashed(demo: Demo) -> Path:
    """The demo's CA as XRootD's clients want it."""
    directory = demo.scratch / "certificates"
    directory.mkdir(exist_ok=True)
    shutil.copy(demo.ca_file, directory / "ca.pem")
    subprocess.run(["openssl", "rehash", str(directory)], check=True, capture_output=True, timeout=15)
    return directory


def _built(gate: Path) -> bool:
    try:
        building.build(gate, Path("/usr/bin/xrootd"))
    except EdgeError:
        return False
    return True


def _ports(count: int) -> list[int]:
    """Ports that are free now: xrootd takes a number, not a socket."""
    socks = [socket.socket() for _ in range(count)]
    try:
        for sock in socks:
            sock.bind(("", 0))
        return [sock.getsockname()[1] for sock in socks]
    finally:
        for sock in socks:
            sock.close()
