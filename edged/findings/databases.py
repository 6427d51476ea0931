"""The databases: there, readable, and of this version's schema."""

from __future__ import annotations

import asyncio

from sqlalchemy.exc import DBAPIError

from edged import services
from edged.config import Config
from edged.doctor import Finding
from edged.errors import ConfigError
from edged.state import Store
from edged.state.migrate import check_version

PART = "database"


async def findings(config: Config) -> list[Finding]:
    """One for each database of a configured service."""
    return await asyncio.to_thread(_look, config)


def _look(config: Config) -> list[Finding]:
    if not config.runtime.state.is_dir():  # opening would make it, as the wrong user
        return []
    return [examined(store) for store in services.stores(config)]


def examined(store: Store) -> Finding:
    """One database; one that was never set up will be at the first start."""
    try:
        if not store.exists():
            return Finding(PART, True, f"{store.name}: not yet there; the first start makes it")
        check_version(store.engine, store.migrations)
    except ConfigError as error:
        return Finding(
            PART, False, f"{store.name}: {error.problems[0]}", "edged state migrate, services stopped"
        )
    except DBAPIError as error:
        return Finding(
            PART, False, f"{store.name}: {error.orig}", "is the disk full, the server down, the file ours?"
        )
    return Finding(PART, True, f"{store.name}: schema is this version's")
