"""The state store: groups, neighbours, a locked and a full disk, and what happens to the acknowledged."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from edged.errors import ConfigError, EdgeError, NoSpace, Unavailable
from edged.state import Store
from edged.state import store as module
from edged.state.migrate import Migration

META = sa.MetaData()
ROWS = sa.Table("rows", META, sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.Text))
FIRST = Migration(1, "rows", META.create_all)


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[Store]:
    async with asyncio.TaskGroup() as tasks:
        store = Store.local("test", file, (FIRST,))
        async with store.running(tasks):
            yield store


def insert(number: int, text: str = "") -> module.Work[None]:
    def work(connection: sa.Connection) -> None:
        connection.execute(ROWS.insert(), {"id": number, "text": text})

    return work


def statement(text: str) -> module.Work[None]:
    def work(connection: sa.Connection) -> None:
        connection.exec_driver_sql(text)

    return work


async def count(store: Store) -> int:
    return await store.read(lambda c: c.scalar(sa.select(sa.func.count()).select_from(ROWS)) or 0)


async def test_one_failing_write_harms_no_neighbour(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.write(insert(1))
        answers = await asyncio.gather(*(store.write(insert(n)) for n in (2, 1, 3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [type(None), IntegrityError, type(None)]
        assert await count(store) == 3


async def test_a_thousand_writes_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await asyncio.gather(*(store.write(insert(n)) for n in range(1000)))
        assert await count(store) == 1000


async def test_what_was_acknowledged_is_on_disk(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.write(insert(7, "kept"))
        with sqlite3.connect(tmp_path / "db") as other:
            assert other.execute("select text from rows").fetchall() == [("kept",)]


async def test_a_locked_database_is_told_and_recovers(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        other = sqlite3.connect(tmp_path / "db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await store.write(insert(1))
        assert store.not_ready() is not None
        other.execute("ROLLBACK")
        other.close()
        await store.write(insert(1))
        assert store.not_ready() is None


async def test_a_full_disk_is_told_before_the_acknowledgement(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.write(statement("PRAGMA max_page_count=20"))
        with pytest.raises(NoSpace):
            for number in range(200):
                await store.write(insert(number, "x" * 2000))
        held = await count(store)
        with pytest.raises(EdgeError):
            await store.write(insert(9999, "x" * 20000))
        assert await count(store) == held


async def test_damaged_pages_are_the_databases_trouble(tmp_path: Path) -> None:
    """Told as one, alone and in a group, and by readiness: no service dies of them."""
    async with opened(tmp_path / "db") as store:
        await asyncio.gather(*(store.write(insert(n, "x" * 2000)) for n in range(200)))
    with (tmp_path / "db").open("r+b") as file:
        for page in range(3, 100):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    async with opened(tmp_path / "db") as store:
        writes = (statement("UPDATE rows SET text = 'y'"), statement("DELETE FROM rows"))
        with pytest.raises(Unavailable, match="cannot be written"):
            await store.write(writes[0])
        answers = await asyncio.gather(*map(store.write, writes), return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
        assert store.not_ready() is not None


async def test_schemas_are_migrated_on_purpose(tmp_path: Path) -> None:
    second = Migration(2, "more", statement("ALTER TABLE rows ADD COLUMN more TEXT"))
    old = Store.local("test", tmp_path / "db", (FIRST,))
    assert old.prepare() == [1]
    new = Store.local("test", tmp_path / "db", (FIRST, second))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks, new.running(tasks):
            pass
    assert caught.group_contains(ConfigError, match="edged state migrate")
    assert new.prepare() == [2]
    assert new.prepare() == []
    with pytest.raises(ConfigError, match="newer"):
        old.prepare()
