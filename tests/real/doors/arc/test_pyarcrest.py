"""pyarcrest, unchanged: REST 1.1 with a token, 1.0 with a proxy."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real.doors.arc.fixtures import ArcSite

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(importlib.util.find_spec("pyarcrest") is None, reason="pyarcrest is not installed"),
    pytest.mark.skipif(
        not Path("/usr/lib/python3/dist-packages/arc").exists(),
        reason="python3-nordugrid-arc is not installed (see .ci/packages.txt)",
    ),
]


async def walked(arc: ArcSite, directory: Path, version: str, **given: str) -> dict[str, Any]:
    """What pyarcrest saw on its way."""
    host, _, port = arc.address.partition(":")
    arguments = [host, port, version, str(directory), *filter(None, [given.get("proxy")])]
    environment = {**os.environ, "SSL_CERT_FILE": str(arc.site.issuer.ca.file)}
    if token := given.get("token"):
        environment["TOKEN"] = token
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("pyarcrest_job.py")), *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()[-3000:]
    return json.loads(out)  # type: ignore[no-any-return]


def check(seen: dict[str, Any], kind: str, first: str) -> None:
    """The same for every version and credential."""
    assert seen["states"] == ["FINISHED"] * 2 and seen["exits"] == [0, 0]
    assert seen["outputs"] == [f"number {n}\n{first}\n" for n in range(2)], seen
    assert seen["deep"] == ["deep\n"] * 2 and seen["errors"] == []
    assert seen["files"] == ["gmlog", "out", "sub"]  # inputs are not shown once the job has ended
    assert seen["listed"] and seen["kill"] == [True, True] and seen["clean"] == [True, True]
    assert seen["kept"] and set(seen["kept"]) == {kind}
    assert all("Job has not failed" in text and "505" in text for text in seen["restart"])


async def test_token(arc: ArcSite, tmp_path: Path) -> None:
    seen = await walked(arc, tmp_path, "1.1", token=arc.site.token())
    check(seen, "jwt", arc.site.token()[:3])


async def test_proxy(arc: ArcSite, tmp_path: Path) -> None:
    seen = await walked(arc, tmp_path, "1.0", proxy=str(arc.proxy_file()))
    check(seen, "x509", "-----BEGIN CERTIFICATE-----")
