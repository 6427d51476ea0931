"""A backup taken while jobs come in, and a site that goes on from it."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from edged.client import ApiClient
from tests.real.jobs.fixtures import local_jobs
from tests.support.site import Site, ended

HELLO = {"executable": "/bin/echo", "arguments": ["hello"], "queue": "short"}


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with Site(tmp_path, jobs=local_jobs(tmp_path)).running() as running:
        yield running


def state(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """`edged state …` of the site."""
    command = [sys.executable, "-m", "edged", "state", *words, "--config", str(site.file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def _submitting(api: ApiClient, taken: list[str], stop: asyncio.Event) -> None:
    while not stop.is_set():
        taken.append((await api.call("POST", "/v1/jobs", body=HELLO))["id"])


async def test_everything_acknowledged_before_a_backup_is_in_it(site: Site, tmp_path: Path) -> None:
    archive, taken, stop = tmp_path / "backup.tar", list[str](), asyncio.Event()
    admin = site.token(groups=("/cms", "/site/admins"))
    async with site.api() as api, site.api("identity-api", admin) as identity:
        await identity.call("POST", "/v1/bans", body={"issuer": site.issuer.url, "subject": "mallory"})
        first = (await api.call("POST", "/v1/jobs", body=HELLO))["id"]
        await ended(api, first)
        submitting = asyncio.create_task(_submitting(api, taken, stop))
        while len(taken) < 5:
            await asyncio.sleep(0.01)
        acknowledged = [first, *taken]
        done = await asyncio.to_thread(state, site, "backup", str(archive))
        stop.set()
        await submitting
        after = (await api.call("POST", "/v1/jobs", body=HELLO))["id"]
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    again = state(site, "backup", str(archive))
    assert again.returncode == 1 and "there already" in again.stderr
    running = state(site, "restore", "--replace", str(archive))
    assert running.returncode == 1 and "stop edged first" in running.stderr
    site.stop()
    there = state(site, "restore", str(archive))
    assert there.returncode == 1 and "--replace" in there.stderr
    restored = state(site, "restore", "--replace", str(archive))
    assert restored.returncode == 0, restored.stderr
    await site.start()
    async with site.api() as api, site.api("identity-api", admin) as identity:
        for job in acknowledged:
            assert (await ended(api, job))["state"] == "FINISHED"
        listed = {job["id"] for job in (await api.call("GET", "/v1/jobs", limit=1000))["jobs"]}
        assert after not in listed, "made after the backup"
        assert [ban["subject"] for ban in (await identity.call("GET", "/v1/bans"))["bans"]] == ["mallory"]


async def test_a_damaged_archive_touches_nothing(site: Site, tmp_path: Path) -> None:
    archive, damaged = tmp_path / "backup.tar", tmp_path / "damaged.tar"
    assert state(site, "backup", str(archive)).returncode == 0
    site.stop()
    before = _tree(site)
    content = archive.read_bytes()
    with tarfile.open(archive) as found:
        key = next(member for member in found.getmembers() if member.name.endswith("grant.key"))
    flipped = bytearray(content)
    flipped[key.offset_data + 40] ^= 1
    for wrong in (content[: len(content) // 2], bytes(flipped), b"not a tar"):
        damaged.write_bytes(wrong)
        done = state(site, "restore", "--replace", str(damaged))
        assert done.returncode != 0
        assert "Traceback" not in done.stderr, done.stderr
        assert _tree(site) == before


def _tree(site: Site) -> set[str]:
    return {
        str(path) for path in (site.root / "state").rglob("*") if not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="owners can be given by root alone")
async def test_owners_and_modes_come_back(site: Site, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar"
    site.stop()
    file = site.root / "state/jobs/jobs.sqlite"
    os.chown(file, 12345, 23456)
    file.chmod(0o640)
    assert state(site, "backup", str(archive)).returncode == 0
    assert state(site, "restore", "--replace", str(archive)).returncode == 0
    (kept,) = (site.root / "state").glob(".replaced-*")
    assert (kept / "jobs/jobs.sqlite").exists()
    again = tmp_path / "again.tar"
    assert state(site, "backup", str(again)).returncode == 0
    with tarfile.open(again) as found:
        assert not [name for name in found.getnames() if name.startswith(".")]
    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o640)
