"""A throw-away PostgreSQL of this machine: its own directory, a unix socket only, no password."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.daemons import Daemon
from tests.support.waiting import until

USER = "postgres"  # PostgreSQL will not run as root


def programs() -> Path | None:
    """The directory of the newest installed server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


needs_postgresql = pytest.mark.skipif(programs() is None, reason="not installed: postgresql")


class PostgreSql:
    """One server. ``url`` is for SQLAlchemy."""

    def __init__(self, root: Path, bin_: Path) -> None:
        self._root, self._bin = root, bin_
        self.url = f"postgresql+psycopg://{USER}@/postgres?host={root}"
        argv = [str(bin_ / "postgres"), "-D", str(root / "data"), "-k", str(root), "-h", ""]
        self.daemon = Daemon("postgres", argv, root / "log", USER)

    def start(self) -> None:
        """Answers when this returns."""
        self.daemon.start()
        ready = [str(self._bin / "pg_isready"), "-q", "-h", str(self._root), "-t", "1"]
        until(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL", 30)

    def kill(self) -> None:
        """As a power cut would: what was not synced is gone."""
        self.daemon.signal(signal.SIGQUIT)  # all its processes at once; SIGKILL would leave some behind
        until(lambda: not self.daemon.alive(), "the end of PostgreSQL", 20)

    def end_sessions(self) -> None:
        """Cut every connection, as a failover does."""
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        argv = [str(self._bin / "psql"), "-qAt", "-h", str(self._root), "-U", USER, "-c", cut]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def postgresql() -> Iterator[PostgreSql]:
    """Running for the block."""
    bin_ = programs()
    assert bin_ is not None
    root = Path(tempfile.mkdtemp(prefix="edged-postgresql-"))
    shutil.chown(root, USER)
    root.chmod(0o755)
    try:
        initdb = [str(bin_ / "initdb"), "-D", str(root / "data"), "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(initdb, check=True, user=USER, cwd="/", stdout=subprocess.DEVNULL)
        server = PostgreSql(root, bin_)
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(root, ignore_errors=True)
