"""SQLAlchemy Core on SQLite (WAL, synchronous FULL) or PostgreSQL, with group commit.

Many coroutines write; one thread takes what has gathered, runs it in one transaction and commits
once, so a thousand acknowledged jobs cost a few fsyncs. A write's future resolves only after the
commit is durable. A failing write harms no neighbour. Since a group may be run again after one of its
writes failed, a write must do nothing but work on the connection it is given.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from edged import metrics
from edged.errors import ConfigError, EdgeError, NoSpace, Unavailable
from edged.logs import get_logger
from edged.state.databases import READS, NotTheHolder, database
from edged.state.migrate import Migration, check_version, is_empty, migrate

log = get_logger("edged.state")

Result = TypeVar("Result")
Work = Callable[[sa.Connection], Result]

MAX_GROUP = 512
MAX_WAITING = 16384

COMMITS = metrics.histogram("state_commit_seconds", "Time of one group commit, in seconds.", ("database",))
WRITES = metrics.counter("state_writes", "Writes asked for, by outcome.", ("database", "outcome"))


@dataclass(slots=True)
class _Waiting:
    work: Work[Any]
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


_Outcome = tuple[_Waiting, Any, BaseException | None]


class Store:
    """One service's database.

    ``url``: a SQLAlchemy URL; ``Store.local(path)`` makes that of a SQLite file. ``prepare()`` runs
    the migrations and is what ``edged state migrate`` calls; ``running()`` refuses an older schema.
    """

    def __init__(self, name: str, url: str, migrations: tuple[Migration, ...]) -> None:
        self.name = name
        self.url = url
        self.migrations = migrations
        self._database = database(name, url)
        self.engine = self._database.engine
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._depth = 0
        self._trouble: str | None = None

    @classmethod
    def local(cls, name: str, file: Path, migrations: tuple[Migration, ...]) -> Store:
        """A store in a SQLite file on a local disk; its directory is the service's own."""
        file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        return cls(name, f"sqlite:///{file}", migrations)

    def prepare(self) -> list[int]:
        """Bring the schema to this version's; returns the migrations applied. Raises ConfigError."""
        try:
            self._database.setup()
            return migrate(self.engine, self.migrations)
        except DBAPIError as error:
            raise ConfigError([f"{self.name} database: {error.orig}"]) from error

    @property
    def file(self) -> Path | None:
        """Where it lies on a local disk, or None."""
        name = self.engine.url.database
        return Path(name) if name and self.engine.dialect.name == "sqlite" else None

    def exists(self) -> bool:
        """Whether the database was ever set up; asked before reading another process's."""
        return (self.file is None or self.file.exists()) and not is_empty(self.engine)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection for programs that only look, without the service. Raises Unavailable."""
        try:
            with self.engine.connect().execution_options(**READS) as connection:
                yield connection
        except DBAPIError as error:
            raise _typed(error) from error

    def not_ready(self) -> str | None:
        """Why nothing can be written now, or None."""
        return self._trouble

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        try:
            await asyncio.to_thread(self._open)
        except DBAPIError as error:
            raise ConfigError([f"{self.name} database: {error.orig}"]) from error
        except NotTheHolder as error:
            raise ConfigError([f"{self.name} database: {error}"]) from error
        writer = threading.Thread(target=self._write_forever, name=f"state-{self.name}", daemon=True)
        writer.start()
        try:
            yield
        finally:
            self._waiting.put(None)
            await asyncio.to_thread(writer.join, 30.0)
            await asyncio.to_thread(self._database.dispose)

    def _open(self) -> None:
        """An empty database is set up; one with content is only ever migrated on purpose."""
        if is_empty(self.engine):
            self.prepare()
        check_version(self.engine, self.migrations)
        with self._database.writer.connect():
            pass  # the right to write is had before anything is read: memory filled from it stays true

    async def write(self, work: Work[Result]) -> Result:
        """Run ``work(connection)`` in a group and return its result once it is durable.

        Raises Unavailable (locked, lost), NoSpace (disk full), or what ``work`` raised.
        """
        if self._depth >= MAX_WAITING:
            raise Unavailable("the state store is overloaded")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()
        self._depth += 1
        try:
            self._waiting.put(_Waiting(work, done, loop))
            return await done
        finally:
            self._depth -= 1

    async def read(self, work: Work[Result]) -> Result:
        """Run ``work(connection)`` in a thread, on a connection of its own, without a lock."""

        def run() -> Result:
            with self.engine.connect().execution_options(**READS) as connection:
                return work(connection)

        try:
            return await asyncio.to_thread(run)
        except DBAPIError as error:
            raise _typed(error) from error

    def _write_forever(self) -> None:
        while True:
            first = self._waiting.get()
            if first is None:
                return
            group, last = self._gather(first)
            self._commit(group)
            if last:
                return

    def _gather(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        group = [first]
        with suppress(queue.Empty):
            while len(group) < MAX_GROUP:
                more = self._waiting.get_nowait()
                if more is None:
                    return group, True
                group.append(more)
        return group, False

    def _commit(self, group: list[_Waiting]) -> None:
        """One transaction for all. If one fails, all again, each in a savepoint of its own."""
        started = time.perf_counter()
        outcomes: list[_Outcome]
        try:
            outcomes = self._transact(group, _perform)
            self._trouble = None
        except NotTheHolder as error:
            outcomes = self._refuse(group, Unavailable("this edge may not write", detail=str(error)))
        except Exception as error:
            if _is_trouble(error):
                outcomes = self._refuse(group, _typed(error))
            else:
                outcomes = [(group[0], None, error)] if len(group) == 1 else self._one_by_one(group)
        COMMITS.labels(self.name).observe(time.perf_counter() - started)
        self._answer(outcomes)

    def _one_by_one(self, group: list[_Waiting]) -> list[_Outcome]:
        try:
            return self._transact(group, _perform_guarded)
        except DBAPIError as error:
            return self._refuse(group, _typed(error))
        except NotTheHolder as error:
            return self._refuse(group, Unavailable("this edge may not write", detail=str(error)))

    def _transact(
        self, group: list[_Waiting], perform: Callable[[sa.Connection, _Waiting], _Outcome]
    ) -> list[_Outcome]:
        with self._database.writer.begin() as connection:
            return [perform(connection, waiting) for waiting in group]

    def _refuse(self, group: list[_Waiting], trouble: EdgeError) -> list[_Outcome]:
        self._trouble = trouble.message
        log.error("commit failed", extra={"database": self.name, "reason": str(trouble)})
        return [(waiting, None, trouble) for waiting in group]

    def _answer(self, outcomes: list[_Outcome]) -> None:
        failed = sum(error is not None for _, _, error in outcomes)
        WRITES.labels(self.name, "failed").inc(failed)
        WRITES.labels(self.name, "ok").inc(len(outcomes) - failed)
        by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
        for outcome in outcomes:
            by_loop.setdefault(outcome[0].loop, []).append(outcome)
        for loop, mine in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, mine)


def _perform(connection: sa.Connection, waiting: _Waiting) -> _Outcome:
    return waiting, waiting.work(connection), None


def _perform_guarded(connection: sa.Connection, waiting: _Waiting) -> _Outcome:
    try:
        with connection.begin_nested():
            return waiting, waiting.work(connection), None
    except Exception as error:
        if _is_trouble(error):
            raise
        return waiting, None, error


def _resolve(outcomes: list[_Outcome]) -> None:
    for waiting, result, error in outcomes:
        if waiting.done.done():
            continue
        if error is None:
            waiting.done.set_result(result)
        else:
            waiting.done.set_exception(error)


def _is_trouble(error: Exception) -> TypeGuard[DBAPIError]:
    """The database's own: locked, lost, full; and what has no class of its own, damaged pages among it."""
    return isinstance(error, OperationalError) or type(error) is DatabaseError


def _typed(error: DBAPIError) -> EdgeError:
    text = str(error.orig)
    if "disk is full" in text or "No space" in text:
        return NoSpace("the disk of the state store is full", detail=text)
    return Unavailable("the state store cannot be written now", detail=text)
