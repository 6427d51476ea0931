"""A running accountd for each test, as root for real accounts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import verbs
from tests.support.accounts import AccountStack, configuration, is_root, own_account
from tests.support.local_accounts import LocalAccount, ensure

FIRST = LocalAccount("edgedt1", "edgedt1", 21001)
SECOND = LocalAccount("edgedt2", "edgedt2", 21002)

Site = Callable[..., AccountStack]


@pytest.fixture(scope="session")
def account() -> str:
    """The account of most tests: a real other one as root, our own otherwise."""
    if not is_root():
        return own_account()
    ensure((FIRST, SECOND))
    return FIRST.name


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that other accounts reach: pytest closes its own to them at each start of any run."""
    with tempfile.TemporaryDirectory(prefix="edged-accounts-") as scratch:
        path = Path(scratch)
        path.chmod(0o755)
        yield path


@pytest.fixture
def site(tmp_path: Path, account: str) -> Site:
    """``site()`` makes a stack to be entered: ``async with site().running() as stack``."""

    def make(idle_s: float = 900.0, batch: bool = False, **more: object) -> AccountStack:
        accounts = [FIRST.name, SECOND.name] if is_root() else [account]
        config = configuration(tmp_path, accounts, idle_s=idle_s, **more)  # type: ignore[arg-type]
        return AccountStack(config, python_path=verbs.publish(tmp_path / "verbs") if batch else None)

    return make


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """The root of the export ``cms``."""
    return tmp_path / "export"
