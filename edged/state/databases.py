"""The databases a store may lie in: a SQLite file of its own, or a schema of the site's PostgreSQL."""

from __future__ import annotations

import sqlite3
import zlib
from typing import Any

import sqlalchemy as sa

from edged.errors import ConfigError

BUSY_S = 5.0
READS: dict[str, Any] = {"edged_reads": True}  # a read never waits for the write lock

HOLDERS = sa.Table("holders", sa.MetaData(), sa.Column("epoch", sa.Integer, primary_key=True))


class NotTheHolder(Exception):
    """Another process has, or had meanwhile, the right to write: what this one remembers may be old."""


class Database:
    """Where a store lies. Readers take connections from ``engine``, the one writer from ``writer``."""

    engine: sa.Engine
    writer: sa.Engine

    def setup(self) -> None:
        """Make the place where tables go."""

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()
        self.writer.dispose()


def database(name: str, url: str) -> Database:
    """Of a SQLAlchemy URL. Raises ConfigError when its driver is not installed."""
    try:
        return _Sqlite(url) if url.startswith("sqlite") else _PostgreSql(name, url)
    except ImportError as error:
        raise ConfigError(
            [f"runtime.database: {error.name} is missing: pip install edged[postgresql]"]
        ) from error


class _Sqlite(Database):
    """A file on a local disk, one writer at a time by SQLite's own lock."""

    def __init__(self, url: str) -> None:
        self.engine = self.writer = sa.create_engine(
            url, connect_args={"timeout": BUSY_S, "check_same_thread": False}
        )
        sa.event.listen(self.engine, "connect", self._configure)
        sa.event.listen(self.engine, "begin", self._begin)

    @staticmethod
    def _configure(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's BEGIN, not the module's
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}")

    @staticmethod
    def _begin(connection: sa.Connection) -> None:
        reads = connection.get_execution_options().get("edged_reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


class _PostgreSql(Database):
    """A schema per store, so that services share a database and no table.

    Services answer from memory, so one process at a time may write. The writer's connection holds an
    advisory lock; one that lost it (network, failover) gets it back only if nobody else had it since.
    """

    def __init__(self, name: str, url: str) -> None:
        self._schema = f"edged_{name}"
        self._epoch: int | None = None
        options: Any = {"connect_args": {"options": f"-csearch_path={self._schema}"}, "pool_pre_ping": True}
        self.engine = sa.create_engine(url, **options)
        self.writer = sa.create_engine(url, pool_size=1, max_overflow=0, **options)
        sa.event.listen(self.writer, "connect", self._hold)

    def setup(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.schema.CreateSchema(self._schema, if_not_exists=True))
            HOLDERS.metadata.create_all(connection)

    def _hold(self, connection: Any, _: object) -> None:
        """Take the lock on a new connection of the writer, and see that it was ours before."""
        key = zlib.crc32(self._schema.encode())
        with connection.cursor() as cursor:
            if not cursor.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()[0]:
                raise NotTheHolder("another edged runs on this database")
            last = cursor.execute("SELECT coalesce(max(epoch), 0) FROM holders").fetchone()[0]
            if self._epoch is None:
                self._epoch = last + 1
                cursor.execute("INSERT INTO holders VALUES (%s)", (self._epoch,))
            elif self._epoch != last:
                raise NotTheHolder("another edged ran on this database meanwhile: restart this one")
        connection.commit()
