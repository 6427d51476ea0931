"""`edged doctor`: finds nothing on a healthy site, and on a broken one what is broken, with what to do."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from edged import config as configuration
from services.jobs import journal
from tests.real.jobs.fixtures import local_jobs
from tests.support.local_accounts import CMSPRD, ensure
from tests.support.origin import Origin
from tests.support.site import Site
from tests.support.toml import dumps

pytestmark = pytest.mark.asyncio(loop_scope="module")
NOWHERE = "127.0.0.1:1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Every part that `edged run` can have without root."""
    root = tmp_path_factory.mktemp("edge")
    for name in ("data", "cache", "sessions"):
        (root / name).mkdir()
    with Origin.running("127.0.0.1") as origin:
        site = Site(
            root,
            jobs=local_jobs(root),
            storage={
                "listen": ["127.0.0.1:0"],
                "export": [{"prefix": "/cms", "root": str(root / "data"), "vo": "cms"}],
            },
            cache={
                "listen": ["127.0.0.1:0"],
                "store": str(root / "cache"),
                "disk": "50M",
                "disk_free": "1M",
                "destination": [{"name": "origin", "hosts": [origin.authority]}],
            },
            egress={"listen": ["127.0.0.1:0"]},
            log={"audit_file": str(root / "audit.log")},
        )
        async with site.running():
            yield site


async def examined(site: Site, changes: Mapping[str, Any] | None = None) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and findings, with a configuration that differs from the one that runs."""
    settings = copy.deepcopy(site.settings())
    for key, value in (changes or {}).items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    file = site.root / "examined.toml"
    file.write_text(dumps(settings))
    command = [sys.executable, "-m", "edged", "doctor", "--json", "--config", str(file)]
    done = await asyncio.to_thread(  # the issuer answers from this loop
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    )
    assert done.stdout, done.stderr
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    return done.returncode, findings


def wrong(findings: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What is wrong, but for the clock: a test machine's may be set by nobody, and then it is right to say so."""
    assert all(finding["advice"] for finding in findings if not finding["ok"]), findings
    return [(one["part"], one["text"]) for one in findings if not one["ok"] and one["part"] != "clock"]


async def test_nothing_is_wrong_with_a_healthy_site(site: Site) -> None:
    code, findings = await examined(site)
    assert wrong(findings) == [], findings
    clock = next(finding for finding in findings if finding["part"] == "clock")
    assert code == (0 if clock["ok"] else 1)
    looked = {finding["part"] for finding in findings}
    assert looked >= {"certificate", "daemon", "database", "disk", "export", "issuer", "names", "sessions"}
    assert looked >= {"upstream", "clock"}


def broken(site: Site) -> dict[str, tuple[Mapping[str, Any], str, str]]:
    """What is broken → the changed tables, the part that says so, and some of its words."""
    issuer = {"url": f"https://{NOWHERE}/", "audience": ["x"], "vo": "ops"}
    settings = site.settings()
    export = {**settings["storage"]["export"][0], "root": str(site.root / "gone")}
    origin = {**settings["cache"]["destination"][0], "upstreams": [f"http://{NOWHERE}"]}
    stranger = site.issuer.ca.host("stranger").key
    nobody = {**settings["mapping"][0], "account": "nobody-there"}
    return {
        "an issuer is down": ({"issuer": [*settings["issuer"], issuer]}, "issuer", NOWHERE),
        "a file system is not mounted": ({"storage": {"export": [export]}}, "export", "gone"),
        "the sessions are missing": ({"jobs": {"sessions": str(site.root / "gone")}}, "sessions", "gone"),
        "the certificate is another host's": (
            {"site": {"host": "other.invalid"}},
            "certificate",
            "is not for",
        ),
        "the name has no address": ({"site": {"host": "other.invalid"}}, "names", "other.invalid"),
        "the certificate cannot be read": (
            {"tls": {"certificate": str(site.root / "gone.pem")}},
            "certificate",
            "cannot be used",
        ),
        "an upstream is down": ({"cache": {"destination": [origin]}}, "upstream", NOWHERE),
        "Slurm is not installed": (
            {"jobs": {"batch": "slurm", "slurm_bin": "/nonexistent"}},
            "slurm",
            "no sbatch",
        ),
        "a certificate that is none": (
            {"tls": {"certificate": str(site.file)}},
            "certificate",
            "no certificate in PEM",
        ),
        "a key that is none": (
            {"tls": {"key": str(site.file)}},
            "certificate",
            f"{site.file}: no key in PEM",
        ),
        "another certificate's key": (
            {"tls": {"key": str(stranger)}},
            "certificate",
            f"{stranger}: is not the key of",
        ),
        "an account is missing": (
            {"accounts": {"mode": "accountd"}, "mapping": [nobody]},
            "account",
            "no such account",
        ),
        "an account is the system's": (
            {"accounts": {"mode": "accountd"}, "mapping": [{**nobody, "account": "daemon"}]},
            "account",
            "daemon: account below the minimum uid",
        ),
        "a listener is elsewhere": (
            {"jobs": {"listen": ["192.0.2.1:8444"]}},
            "listener",
            "jobs.listen[0]: 192.0.2.1:8444",
        ),
        "the audit log's directory is missing": (
            {"log": {"audit_file": str(site.root / "gone/audit.log")}},
            "disk",
            "gone",
        ),
    }


CASES = (
    *("an issuer is down", "a file system is not mounted", "the sessions are missing"),
    *("the certificate is another host's", "the name has no address", "the certificate cannot be read"),
    *("a certificate that is none", "a key that is none", "another certificate's key"),
    *("a listener is elsewhere", "an account is missing", "an account is the system's"),
    *("an upstream is down", "Slurm is not installed", "the audit log's directory is missing"),
)


@pytest.mark.parametrize("case", CASES)
async def test_what_is_broken_is_found(site: Site, case: str) -> None:
    changes, part, words = broken(site)[case]
    code, findings = await examined(site, changes)
    assert code == 1
    assert [text for found, text in wrong(findings) if found == part and words in text], wrong(findings)


async def test_a_database_of_another_release_is_found(site: Site) -> None:
    store = journal.open_store(configuration.load(site.file))
    newer = "INSERT INTO schema_versions VALUES (99, 'of a later release', 0)"
    with store.engine.begin() as connection:
        connection.execute(sa.text(newer))
    try:
        found = wrong((await examined(site))[1])
    finally:
        with store.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM schema_versions WHERE version = 99"))
    assert [part for part, text in found if "newer than this version" in text] == ["database"]


@pytest.mark.root
async def test_a_database_that_its_service_cannot_write_is_found(site: Site) -> None:
    """Root would not notice: it may write everywhere."""
    file = journal.open_store(configuration.load(site.file)).file
    assert file is not None
    os.chown(file, 4711, -1)
    try:
        found = wrong((await examined(site))[1])
    finally:
        for path in file.parent.glob(f"{file.name}*"):  # SQLite gives its log to the database's owner
            os.chown(path, os.geteuid(), -1)
    assert [text for part, text in found if part == "database" and "belongs to uid 4711" in text], found


@pytest.mark.root
async def test_an_account_that_cannot_get_at_its_files_is_found(site: Site, tmp_path: Path) -> None:
    """The directory is its own; one above it lets nobody pass."""
    ensure((CMSPRD,))
    root = tmp_path / "closed/cms"
    root.mkdir(parents=True)
    os.chown(root, CMSPRD.uid, -1)
    settings = site.settings()
    rule = {**settings["mapping"][0], "account": CMSPRD.name}
    export = {**settings["storage"]["export"][0], "root": str(root), "vo": "cms"}
    changes = {"accounts": {"mode": "accountd"}, "mapping": [rule], "storage": {"export": [export]}}
    root.parent.chmod(0o700)
    found = wrong((await examined(site, changes))[1])
    assert ("account", f"cmsprd: may not enter {root}") in found, found


async def test_what_is_wrong_is_counted_among_all(site: Site) -> None:
    command = [sys.executable, "-m", "edged", "doctor", "--wrong", "disks", "--config", str(site.file)]
    done = await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    )
    assert done.stdout.splitlines()[-1] == "2 looked at, 0 wrong"


async def test_a_daemon_that_is_down_is_found(site: Site, tmp_path: Path) -> None:
    """Last: the site has ended then."""
    site.stop()
    (found,) = [text for part, text in wrong((await examined(site))[1]) if part == "daemon"]
    assert "does not answer" in found
