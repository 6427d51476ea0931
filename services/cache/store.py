"""The objects on disk: one file per object, named by its hash. The file system is the index.

Nothing of the store is held in memory, so a million objects cost no memory and no start-up time, and
any number of processes may share it. A file appears by rename, whole, without an fsync; what a power
cut left damaged is found because a file not verified since this boot is hashed before its first use.
A file's modification time says both when it was last verified or used.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edged.errors import NoSpace
from edged.logs import get_logger
from services.cache.files import OpenFile, open_cached, open_file
from services.cache.names import ObjectName
from services.cache.presence import Presence
from services.cache.usage import Usage

log = get_logger("edged.cache.store")

BLOCK = 4096  # what a file is counted as at least: small ones cost a block
_CHUNK = 1 << 20
_STALE_PART_S = 3600.0


def footprint(size: int) -> int:
    """Bytes of disk a file of ``size`` takes, roughly."""
    return (size + BLOCK - 1) // BLOCK * BLOCK or BLOCK


@dataclass(slots=True)
class Part:
    """A file being filled. ``file`` can be read meanwhile. Ends in ``Store.commit`` or ``discard``."""

    fd: int
    path: Path | None
    file: OpenFile

    def write(self, data: bytes | bytearray) -> None:
        """Append. Raises NoSpace."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError as error:
            raise _as_edge_error(error) from error

    def close(self) -> None:
        """No more writing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Close and forget it."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None


class Store:
    """The directory ``root``. Methods may block; call them in threads, but for ``look``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.answers = root / "answers"
        self.repositories = root / "repositories"
        self.tickets = root / "tickets"
        self._parts = root / "parts"
        self._objects = f"{self.objects}/"
        for directory in (self.objects, self.answers, self.repositories, self.tickets, self._parts):
            directory.mkdir(parents=True, exist_ok=True)
        self.usage = Usage(root / "usage")
        self.presence = Presence()
        self._scratch = f"{self._parts}/{os.getpid()}-{secrets.token_hex(4)}-"
        self._serial = itertools.count()
        self.epoch = _epoch(root / "boot")
        self.remove_stale_parts()

    def look(self, name: ObjectName) -> OpenFile | None:
        """Open if that cannot block; None when absent. Raises WouldBlock."""
        return open_cached(self._objects + name.key)

    def open(self, name: ObjectName) -> OpenFile | None:
        """Open; None when absent."""
        return open_file(self._objects + name.key)

    def trusted(self, file: OpenFile) -> bool:
        """Whether the file was verified since the machine started, so that no power cut can have hurt it."""
        return file.modified >= self.epoch

    def path(self, name: ObjectName) -> Path:
        """Where the object lies."""
        return self.objects / name.key

    def part_path(self, part: str) -> Path:
        """A part of another process, by the name its ticket tells."""
        return self._parts / Path(part).name

    def put(self, name: ObjectName, data: bytes) -> None:
        """Store a whole object. Raises NoSpace. Once per cold object: plain strings, few system calls."""
        scratch = f"{self._scratch}{next(self._serial)}"
        try:
            fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(errno.ENOSPC, "short write")
            finally:
                os.close(fd)
            move(scratch, self._objects + name.key)
        except OSError as error:
            Path(scratch).unlink(missing_ok=True)
            raise _as_edge_error(error) from error
        self.presence.add(name)
        self.usage.add(footprint(len(data)))

    def new_part(self) -> Part:
        """A file to fill. Raises NoSpace."""
        path = self.scratch()
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _as_edge_error(error) from error
        return Part(fd, path, OpenFile(os.dup(fd)))

    def scratch(self) -> Path:
        """A new name for a file in the making."""
        return Path(f"{self._scratch}{next(self._serial)}")

    def memory_part(self) -> Part:
        """A file in memory, for when the disk is full: served, never stored."""
        fd = os.memfd_create("edged-cache", os.MFD_CLOEXEC)
        return Part(fd, None, OpenFile(os.dup(fd)))

    def commit(self, part: Part, name: ObjectName, size: int) -> None:
        """Give a verified part its name; a second copy of the same object replaces the first."""
        if part.path is None:
            return
        target = self.path(name)
        replaced = target.stat().st_size if target.exists() else None
        move(part.path, target)
        part.path = None
        part.close()
        self.presence.add(name)
        self.usage.add(footprint(size) - (footprint(replaced) if replaced is not None else 0))

    def remove(self, name: ObjectName) -> int:
        """Remove; returns the bytes freed."""
        return self.remove_file(self.path(name))

    def remove_file(self, path: Path | str) -> int:
        """Remove an object or an answer by path; returns the bytes freed, 0 when another was faster."""
        try:
            size = footprint(os.stat(path).st_size)  # noqa: PTH116
            os.unlink(path)  # noqa: PTH108 - a million times
        except FileNotFoundError:
            return 0
        self.usage.add(-size)
        return size

    def touch(self, names: set[str]) -> None:
        """Mark objects (by key) as used now."""
        now = time.time()
        for key in names:
            try:
                os.utime(self._objects + key, (now, now))
            except OSError:  # evicted meanwhile
                continue

    def verify(self, name: ObjectName) -> bool:
        """Hash the stored object; a good one is trusted from now on, a damaged one removed."""
        file = self.open(name)
        if file is None:
            return False
        good = matches(name, file)
        if good:
            self.touch({name.key})
        else:
            log.warning("damaged object removed", extra={"object": name.key, "size": file.size})
            self.remove(name)
        return good

    def names(self) -> Iterator[ObjectName]:
        """All objects."""
        for number in range(256):
            for entry in self.entries(self.objects, number):
                yield ObjectName(f"{number:02x}/{entry.name}")

    def files(self) -> Iterator[str]:
        """The paths of all objects and answers."""
        for base in (self.objects, self.answers):
            for number in range(256):
                for entry in self.entries(base, number):
                    yield entry.path

    @staticmethod
    def entries(base: Path, number: int) -> Iterator[os.DirEntry[str]]:
        """The files in one of the 256 directories of objects or answers; none when nothing came there yet."""
        try:
            yield from os.scandir(base / f"{number:02x}")
        except FileNotFoundError:
            return

    def remove_stale_parts(self) -> None:
        """What dead processes left unfinished."""
        horizon = time.time() - _STALE_PART_S
        for path in (*self._parts.iterdir(), *self.tickets.iterdir()):
            try:
                if path.stat().st_mtime < horizon:
                    path.unlink()
            except FileNotFoundError:
                continue

    def free(self) -> int:
        """Bytes the file system has left for us."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize


def move(path: Path | str, target: Path | str) -> None:
    """Give a finished file its place; its directory is made when it is the first there."""
    try:
        os.rename(path, target)  # noqa: PTH104 - once per cold object
    except FileNotFoundError:
        Path(target).parent.mkdir(exist_ok=True)
        os.rename(path, target)  # noqa: PTH104


def matches(name: ObjectName, file: OpenFile) -> bool:
    """Whether the file's bytes have the hash in its name."""
    hasher = name.hasher()
    offset = 0
    while chunk := os.pread(file.fd, _CHUNK, offset):
        hasher.update(chunk)
        offset += len(chunk)
    return hasher.hexdigest() == name.digest


def _epoch(file: Path) -> float:
    """Since when stored files can be trusted: the first start after this boot of the machine."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        known, _, since = file.read_text().partition(" ")
        if known == boot:
            return float(since)
    except (FileNotFoundError, ValueError):
        pass
    now = time.time()
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(f"{boot} {now!r}")
    fresh.rename(file)
    return now


def _as_edge_error(error: OSError) -> NoSpace:
    """Anything a disk says when it will not take more: full, quota, or broken."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return NoSpace("the cache's disk is full" if full else "the cache's disk fails", detail=str(error))
