"""Schema versions: numbered steps, applied in order, each in its own transaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from edged.errors import ConfigError

NEWER = "run the newer edged, or bring back the archive from before it (edged state restore --replace)"
META = sa.MetaData()
VERSIONS = sa.Table(
    "schema_versions",
    META,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("applied_at", sa.Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One step. ``apply`` gets a connection inside a transaction."""

    version: int
    name: str
    apply: Callable[[sa.Connection], None]


def current(connection: sa.Connection) -> int:
    """The schema's version; 0 for an empty database."""
    if not sa.inspect(connection).has_table(VERSIONS.name):
        return 0
    return connection.scalar(sa.select(sa.func.max(VERSIONS.c.version))) or 0


def is_empty(engine: sa.Engine) -> bool:
    """Whether no schema was ever set up in this database."""
    with engine.connect() as connection:
        return current(connection) == 0


def migrate(engine: sa.Engine, migrations: tuple[Migration, ...]) -> list[int]:
    """Apply what is missing; returns the versions applied. Raises ConfigError for a newer schema."""
    applied: list[int] = []
    with engine.begin() as connection:
        META.create_all(connection)
    for step in migrations:
        with engine.begin() as connection:
            if current(connection) >= step.version:
                continue
            step.apply(connection)
            connection.execute(
                VERSIONS.insert().values(version=step.version, name=step.name, applied_at=time.time())
            )
            applied.append(step.version)
    check_version(engine, migrations)
    return applied


def check_version(engine: sa.Engine, migrations: tuple[Migration, ...]) -> None:
    """Raise ConfigError unless the schema is exactly this version's."""
    wanted = max((step.version for step in migrations), default=0)
    with engine.connect() as connection:
        found = current(connection)
    if found < wanted:
        raise ConfigError([f"state: schema {found}, this version needs {wanted}: run `edged state migrate`"])
    if found > wanted:
        raise ConfigError([f"state: schema {found} is newer than this version's {wanted}: {NEWER}"])
