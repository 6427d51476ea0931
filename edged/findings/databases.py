"""The databases: there, readable, of this version's schema, and writable by who serves from them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from edged import services
from edged.config import Config
from edged.doctor import Finding
from edged.errors import ConfigError
from edged.state import Store
from edged.state.migrate import check_version

PART = "database"
BROKEN = ("not a database", "malformed")  # SQLITE_NOTADB, SQLITE_CORRUPT
RESTORE = "bring the last archive back: edged state restore --replace FILE, services stopped"


async def findings(config: Config) -> list[Finding]:
    """One for each database of a configured service, and one for what keeps its service from writing."""
    return await asyncio.to_thread(_look, config)


def _look(config: Config) -> list[Finding]:
    if not config.runtime.state.is_dir():  # opening would make it, as the wrong user
        return []
    return [finding for store in services.stores(config) for finding in examined(store)]


def examined(store: Store) -> list[Finding]:
    """One database."""
    file = store.file
    return [_schema(store), *(_place(store.name, file) if file is not None and file.exists() else ())]


def _schema(store: Store) -> Finding:
    """One that was never set up will be at the first start."""
    try:
        if not store.exists():
            return Finding(PART, True, f"{store.name}: not yet there; the first start makes it")
        check_version(store.engine, store.migrations)
    except ConfigError as error:
        return Finding(PART, False, f"{store.name}: {error.problems[0]}", "do that with the services stopped")
    except DBAPIError as error:
        broken = any(word in str(error.orig) for word in BROKEN)
        advice = RESTORE if broken else "is the disk full, the server down, the file ours?"
        return Finding(PART, False, f"{store.name}: {error.orig}", advice)
    return Finding(PART, True, f"{store.name}: schema is this version's")


def _place(name: str, file: Path) -> list[Finding]:
    """What root does not notice: it may read and write everywhere but on a read-only file system."""
    owner = file.parent.stat().st_uid
    found = [
        Finding(
            PART,
            False,
            f"{name}: {path} belongs to uid {path.stat().st_uid}, its directory to uid {owner}",
            f"chown --reference={file.parent} {path}: who serves from it cannot write it",
        )
        for path in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm")))
        if path.exists() and path.stat().st_uid != owner
    ]
    if os.statvfs(file.parent).f_flag & os.ST_RDONLY:
        found.append(
            Finding(
                PART, False, f"{name}: {file.parent} is mounted read-only", "mount it writable; see dmesg"
            )
        )
    return found
