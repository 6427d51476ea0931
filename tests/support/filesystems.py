"""File systems with a fault of their own, really mounted: one that hangs, one with a quota. For root."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import until


class Distant:
    """A directory seen through bindfs, a file server of our own: stopped, it answers nobody."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def hang(self) -> None:
        """Every call that needs the server waits in the kernel from now on."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """It answers again, also those who waited."""
        os.kill(self._pid, signal.SIGCONT)


@contextmanager
def distant(source: Path, seen: Path) -> Iterator[Distant]:
    """``source`` mounted at ``seen`` by a file server that can be made to hang (Debian: bindfs)."""
    source.mkdir()
    seen.mkdir()
    argv = ["bindfs", "-f", "-o", "attr_timeout=0,entry_timeout=0", str(source), str(seen)]
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        until(lambda: os.path.ismount(seen), f"{seen} is mounted", 10)
        yield Distant(server.pid)
    finally:
        server.send_signal(signal.SIGCONT)
        subprocess.run(["umount", "-l", str(seen)], check=False)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)


@contextmanager
def with_quota(image: Path, seen: Path, limit: str) -> Iterator[Path]:
    """A btrfs in a file, whose subvolume ``data`` may hold ``limit``, e.g. 4M: more is EDQUOT, not ENOSPC."""
    with image.open("wb") as file:
        file.truncate(300 << 20)
    seen.mkdir()
    _do("mkfs.btrfs", "-q", "-f", str(image))
    _do("mount", "-o", "loop", str(image), str(seen))
    try:
        data = seen / "data"
        _do("btrfs", "quota", "enable", str(seen))
        _do("btrfs", "subvolume", "create", str(data))
        _do("btrfs", "qgroup", "limit", limit, str(data))
        yield data
    finally:
        subprocess.run(["umount", "-l", str(seen)], check=False)


def _do(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
