"""One site with two VOs for all tests that only use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.xrootd import XrootdSite


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XrootdSite]:
    with XrootdSite(tmp_path_factory.mktemp("xrootd")) as found:
        yield found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Something to upload."""
    file = tmp_path / "source"
    file.write_bytes(bytes(range(256)) * 2000)
    return file
