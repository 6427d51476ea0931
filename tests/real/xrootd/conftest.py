"""One site with two VOs for all tests that only use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.xrootd import XrootdSite, scratch


@pytest.fixture(scope="session")
def site() -> Iterator[XrootdSite]:
    with scratch() as directory, XrootdSite(directory) as found:
        yield found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Something to upload."""
    file = tmp_path / "source"
    file.write_bytes(bytes(range(256)) * 2000)
    return file
