"""``edged state backup`` and ``restore``: everything below ``runtime.state``, as one archive.

Databases are copied by SQLite's online backup while their services write on; each copy is a state that the
database had at one moment, and is checked. Keys and other files are copied as they are. The archive has the
site's signing keys: mode 600, and its place is where the site keeps secrets.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath

import msgspec

from edged import __version__, peers
from edged.config import Config
from edged.errors import BadRequest, Conflict

MANIFEST = "edged-backup.json"
BESIDE = ("-wal", "-shm", "-journal")  # of a database; its copy has what they hold
SQLITE = b"SQLite format 3\0"
REPLACED, RESTORING = ".replaced-", ".restoring-"  # left by, and made for, a restore: no part of the state


class Manifest(msgspec.Struct, frozen=True):
    """``files``: name below the state directory → SHA-256."""

    version: str
    made_at: float
    files: dict[str, str]


def save(config: Config, target: Path) -> Iterator[str]:
    """Write the archive; one line for each file. Raises Conflict when ``target`` exists."""
    state = config.runtime.state
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        partial = Path(scratch) / "archive"
        with partial.open("xb") as out, tarfile.open(fileobj=out, mode="w") as archive:
            partial.chmod(0o600)
            for path in _below(state):
                name = str(path.relative_to(state))
                member = archive.gettarinfo(path, name)
                if path.is_dir():
                    archive.addfile(member)
                    continue
                copy = _copied(path, Path(scratch) / "copy")
                digests[name], member.size = _digest(copy), copy.stat().st_size
                with copy.open("rb") as content:
                    archive.addfile(member, content)
                yield f"{name}: {member.size} bytes"
            told = msgspec.json.encode(Manifest(__version__, time.time(), digests))
            last = tarfile.TarInfo(MANIFEST)
            last.size, last.mode = len(told), 0o600
            archive.addfile(last, io.BytesIO(told))
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(partial, target)  # never over another backup
        except FileExistsError:
            raise Conflict(f"{target}: is there already") from None
    if config.runtime.database:
        yield "the shared database is PostgreSQL's own matter: pg_dump it at the same time"


def _below(state: Path) -> Iterator[Path]:
    """Directories and regular files, parents first, without what belongs to an open database."""
    for directory, names, files in os.walk(state):
        names[:] = sorted(name for name in names if not name.startswith((REPLACED, RESTORING)))
        for name in [*names, *sorted(files)]:
            path = Path(directory) / name
            if path.is_symlink() or name.endswith(BESIDE):
                continue
            if path.is_dir() or path.is_file():
                yield path


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def _copied(path: Path, copy: Path) -> Path:
    """A file as it was at one moment; a database in one file. Raises BadRequest when that is damaged."""
    copy.unlink(missing_ok=True)
    if not _is_database(path):
        return Path(shutil.copyfile(path, copy))
    with closing(sqlite3.connect(path, timeout=30.0)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
    _check(copy)
    return copy


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        (said,) = connection.execute("PRAGMA integrity_check").fetchone()
    if said != "ok":
        raise BadRequest(f"{database.name}: the database is damaged: {said}")


def restore(config: Config, source: Path, *, replace: bool) -> Iterator[str]:
    """Bring an archive back. Raises Conflict while edged runs, or over a state without ``replace``.

    What was there is kept beside it. Everything is checked before the first file is moved.
    """
    state = config.runtime.state
    if running := asyncio.run(_running(config)):
        raise Conflict(f"stop edged first: {', '.join(running)} answer")
    there = sorted(state.iterdir()) if state.is_dir() else []
    before = [path for path in there if not path.name.startswith((REPLACED, RESTORING))]
    if before and not replace:
        raise Conflict(f"{state} is not empty; --replace keeps what is there beside it")
    state.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=RESTORING, dir=state) as name:
        fresh = Path(name)
        manifest = _unpacked(source, fresh)
        if before:
            kept = state / f"{REPLACED}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            kept.mkdir(mode=0o700)
            for path in before:
                path.rename(kept / path.name)
            yield f"what was there is in {kept}"
        for path in sorted(fresh.iterdir()):
            path.rename(state / path.name)
    made = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(manifest.made_at))
    yield f"{len(manifest.files)} files of {made}, written by edged {manifest.version}"
    yield "next: edged state migrate, then start edged"


async def _running(config: Config) -> list[str]:
    """Names of our processes that answer."""
    async with peers.session() as session:
        found = await asyncio.gather(*(peers.readiness(session, peer) for peer in peers.configured(config)))
    return [ready.name for ready in found if ready.answered is not None]


def _unpacked(source: Path, into: Path) -> Manifest:
    """The archive's files with their owners and modes, each as its digest says. Raises BadRequest."""
    try:
        with tarfile.open(source, "r:") as archive:
            manifest = _extracted(archive, into)
    except (tarfile.TarError, msgspec.MsgspecError) as error:
        raise BadRequest(f"{source}: not a whole backup of edged: {error}") from error
    files = {str(path.relative_to(into)): path for path in into.rglob("*") if path.is_file()}
    if files.keys() != manifest.files.keys():
        raise BadRequest(f"{source}: files are missing")
    for name, path in files.items():
        if _digest(path) != manifest.files[name]:
            raise BadRequest(f"{source}: {name} was changed")
        if _is_database(path):
            _check(path)
    return manifest


def _extracted(archive: tarfile.TarFile, into: Path) -> Manifest:
    """All members as files. Raises TarError."""
    *members, last = archive.getmembers() or [tarfile.TarInfo()]
    if last.name != MANIFEST or (told := archive.extractfile(last)) is None:
        raise tarfile.ReadError("its list of contents is missing")
    # owners too: names are checked here. Python before 3.11.4 knows no filter and extracts as this one does.
    archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not (member.isdir() or member.isreg()):
            raise tarfile.ReadError(f"{member.name} does not belong into one")
        archive.extract(member, into)
    return msgspec.json.decode(told.read(), type=Manifest)
