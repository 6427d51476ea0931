"""What the storage service shows in ``edged demo``: a file's life over WebDAV, checksums included."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Protocol

import aiohttp

from edged.demo.context import Demo

DATA = b"one identity, one policy, one audit trail\n" * 100_000


class Scene(Protocol):
    """Where the demo plays."""

    @property
    def scratch(self) -> Path: ...


def settings(scene: Scene) -> str:
    """TOML: one export in the scratch directory, which may copy with itself over loopback."""
    root = scene.scratch / "storage"
    root.mkdir(exist_ok=True)
    return f"""
[storage]
listen = ["127.0.0.1:0"]

[storage.third_party]
partners = ["127.0.0.1"]
allow = ["127.0.0.0/8"]

[[storage.export]]
prefix = "/demo"
root = "{root}"
vo = "demo"
"""


async def steps(demo: Demo) -> None:
    """Upload → list → check → third-party copy → delete."""
    demo.heading("storage: a piece of the file system over WebDAV")
    base = demo.url("storage")
    token = demo.token()
    headers = {"Authorization": f"Bearer {token}"}
    adler = f"adler32={zlib.adler32(DATA):08x}"
    connector = aiohttp.TCPConnector(ssl=demo.tls())
    async with aiohttp.ClientSession(base, headers=headers, connector=connector) as session:
        async with demo.step("upload a file") as step, session.put("/demo/store/file", data=DATA) as answer:
            step.result = f"{answer.status}, {len(DATA)} bytes, {answer.headers['Digest']}"
            _expect(answer, 201)
        find = session.request("PROPFIND", "/demo/store", headers={"Depth": "1"})
        async with demo.step("list its directory") as step, find as answer:
            _expect(answer, 207)
            step.result = f"{(await answer.text()).count('<D:href>') - 1} member"
        head = session.head("/demo/store/file", headers={"Want-Digest": "adler32"})
        async with demo.step("check its checksum") as step, head as answer:
            _expect(answer, 200)
            step.result = answer.headers["Digest"]
            step.expect(step.result == adler, f"expected {adler}")
        pull = {"Source": f"{base}/demo/store/file", "TransferHeaderAuthorization": f"Bearer {token}"}
        copy = session.request("COPY", "/demo/copies/file", headers=pull)
        async with demo.step("third-party copy") as step, copy as answer:
            _expect(answer, 202)
            step.result = (await answer.text()).strip().splitlines()[-1]
            step.expect(step.result.startswith("success"), step.result)
        async with demo.step("compare the copy") as step, session.get("/demo/copies/file") as answer:
            _expect(answer, 200)
            step.expect(await answer.read() == DATA, "other bytes")
            step.result = "the same bytes"
        async with demo.step("delete both") as step:
            for path in ("/demo/store", "/demo/copies"):
                async with session.delete(path) as answer:
                    _expect(answer, 204)
            step.result = "204, 204"


def _expect(answer: aiohttp.ClientResponse, status: int) -> None:
    if answer.status != status:
        raise AssertionError(f"{answer.method} {answer.url.path} answered {answer.status}, expected {status}")
