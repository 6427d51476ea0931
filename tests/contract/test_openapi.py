"""Every public API keeps its own OpenAPI document: schemathesis finds no 500 and no undocumented answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edged.http import openapi
from tests.real.jobs.fixtures import local_jobs
from tests.support.site import Site

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("service", ["jobs", "identity-api"])
async def test_no_input_makes_a_500(service: str) -> None:
    with tempfile.TemporaryDirectory(prefix="edged-openapi-") as root:
        async with Site(Path(root), jobs=local_jobs(Path(root))).running() as site:
            headers = Path(root) / "schemathesis.toml"
            headers.write_text(f'[headers]\nAuthorization = "Bearer {site.token()}"\n')
            done = await asyncio.to_thread(
                subprocess.run,
                [
                    *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(headers), "run"),
                    f"{site.url(service)}/openapi.json",
                    *("--tls-verify", str(site.issuer.ca.file), "--checks", CHECKS),
                    *("--max-examples", "25", "--seed", "7", "--request-timeout", "10", "--no-color"),
                    *("--exclude-path", "/v1/events", "--phases", "examples,coverage,fuzzing"),
                ],
                capture_output=True,
                text=True,
                timeout=200,
                cwd=root,
            )
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
            assert "unexpected error" not in site.log()


def test_every_operation_is_documented() -> None:
    assert openapi.document("empty", ())["openapi"] == "3.1.0"
