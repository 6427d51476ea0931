"""What every test has."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Instead of pytest's own: neither the test's name, nor the worker's, nor the user's is in its path.

    Sites make sockets in it, and the path of a socket has room for 107 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="edged-", ignore_cleanup_errors=True) as made:
        yield Path(made)
