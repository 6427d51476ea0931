"""Endpoints shared by the tests of this folder: started once, each test in a directory of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dav import Dav
from tests.support.storage import StorageSite

THIRD_PARTY = {
    "partners": ["localhost", "127.0.0.1"],
    "allow": ["127.0.0.0/8"],
    "marker_s": 0.5,
    "plain_http": True,
    "attempts": 2,
    "stall_s": 2.0,
}


@pytest.fixture(scope="session")
def ground() -> Iterator[Path]:
    """A directory that other accounts can enter; pytest's own ones are closed to them."""
    directory = Path(tempfile.mkdtemp(prefix="edged-storage-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def site(ground: Path) -> Iterator[StorageSite]:
    """An https endpoint with everything by default; /open is readable by anyone, /atlas another VO's."""
    directory = ground / "site"
    account = StorageSite(directory).account
    exports = (
        {"prefix": "/open", "root": str(directory / "open"), "vo": "cms", "anonymous": account},
        {"prefix": "/atlas", "root": str(directory / "atlas"), "vo": "atlas", "accounts": [account]},
        {"prefix": "/pruned", "root": str(directory / "pruned"), "vo": "cms", "prune": 3},
        {"prefix": "/small", "root": str(directory / "small"), "vo": "cms"},
        {"prefix": "/strict", "root": str(directory / "strict"), "vo": "cms", "create_parents": False},
    )
    settings = {"third_party": THIRD_PARTY, "stall_s": 5.0, "report_public": True}
    with StorageSite(directory, exports=exports, settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def other(ground: Path, site: StorageSite) -> Iterator[StorageSite]:
    """A second endpoint under the same CA and issuer, for copies between two."""
    settings = {"third_party": THIRD_PARTY}
    with StorageSite(ground / "other", ca=site.ca, issuer=site.issuer, settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def plain(ground: Path) -> Iterator[StorageSite]:
    """A plain http endpoint: the sendfile path."""
    with StorageSite(ground / "plain", tls=False, settings={"third_party": THIRD_PARTY}) as running:
        yield running


@pytest.fixture
def dav(site: StorageSite, request: pytest.FixtureRequest) -> Iterator[Dav]:
    """A client in a directory of its own on ``site``."""
    yield from _in_own_directory(site, request)


@pytest.fixture
def plain_dav(plain: StorageSite, request: pytest.FixtureRequest) -> Iterator[Dav]:
    """The same on ``plain``."""
    yield from _in_own_directory(plain, request)


def _in_own_directory(site: StorageSite, request: pytest.FixtureRequest) -> Iterator[Dav]:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[:60]
    own = site.root / name
    own.mkdir()
    site.own(own)
    client = Dav(site, f"/cms/{name}", own)
    yield client
    client.close()
    assert not [p for p in own.rglob(".edged-upload-*") if p.is_file()], "an upload left its temporary"
    shutil.rmtree(own, ignore_errors=True)


def tool(name: str) -> str:
    """The path of a client program; the test is skipped, visibly, when it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (see .ci/packages.txt)")
    return found
