"""The same store on a real PostgreSQL: durable, one writer, fenced; and a whole site on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from edged.errors import ConfigError, Unavailable
from edged.state import Store
from edged.state.migrate import Migration
from tests.real.jobs.fixtures import local_jobs
from tests.support.postgresql import PostgreSql, needs_postgresql, postgresql
from tests.support.site import Site, ended
from tests.support.waiting import until_async

pytestmark = [pytest.mark.root, needs_postgresql]

META = sa.MetaData()
ROWS = sa.Table("rows", META, sa.Column("id", sa.Integer, primary_key=True))
FIRST = Migration(1, "rows", META.create_all)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    with postgresql() as running:
        yield running


@asynccontextmanager
async def opened(server: PostgreSql, name: str) -> AsyncIterator[Store]:
    async with asyncio.TaskGroup() as tasks:
        store = Store(name, server.url, (FIRST,))
        async with store.running(tasks):
            yield store


async def insert(store: Store, number: int) -> None:
    await store.write(lambda connection: connection.execute(ROWS.insert(), {"id": number}) and None)


async def rows(store: Store) -> list[int]:
    return await store.read(lambda connection: list(connection.scalars(sa.select(ROWS.c.id).order_by("id"))))


async def test_groups_and_neighbours(server: PostgreSql) -> None:
    async with opened(server, "groups") as store, opened(server, "others") as other:
        await insert(other, 7)
        await insert(store, 1)
        answers = await asyncio.gather(*(insert(store, n) for n in (2, 1, 3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [type(None), IntegrityError, type(None)]
        assert await rows(store) == [1, 2, 3]
        assert await rows(other) == [7], "services share the database and no table"


async def test_what_was_acknowledged_survives_and_the_server_may_come_back(server: PostgreSql) -> None:
    async with opened(server, "durable") as store:
        await insert(store, 1)
        server.kill()
        with pytest.raises(Unavailable):
            await insert(store, 2)
        assert store.not_ready()
        server.start()

        async def written() -> bool:
            try:
                await insert(store, 3)
            except Unavailable:
                return False
            return True

        await until_async(written, "a write after the restart", 20)
        assert store.not_ready() is None
        assert await rows(store) == [1, 3]


async def test_a_second_edge_is_refused_until_the_first_has_gone(server: PostgreSql) -> None:
    async with opened(server, "single") as store:
        await insert(store, 1)
        with pytest.raises(ExceptionGroup) as refused:
            async with opened(server, "single"):
                pass
        assert isinstance(refused.value.exceptions[0], ConfigError)
        assert "another edged runs on this database" in str(refused.value.exceptions[0])
    async with opened(server, "single") as store:
        assert await rows(store) == [1]


async def test_who_lost_the_right_to_write_does_not_get_it_back_after_another(server: PostgreSql) -> None:
    """Its memory is old then: writing from it could run a job twice."""
    async with opened(server, "fenced") as store:
        await insert(store, 1)
        server.end_sessions()
        async with opened(server, "fenced") as other:
            await insert(other, 2)
            with pytest.raises(Unavailable):
                await insert(store, 3)
        with pytest.raises(Unavailable):
            await insert(store, 4)
        assert await rows(store) == [1, 2]


async def test_a_site_keeps_its_jobs_there(server: PostgreSql, tmp_path: Path) -> None:
    site = Site(tmp_path, jobs=local_jobs(tmp_path))
    site.sections["runtime"] = {**site.settings()["runtime"], "database": server.url}
    async with site.running():
        async with site.api() as api:
            body = {"script": "#!/bin/sh\ntrue\n", "inputs": ["later"], "key": "once"}
            held = (await api.call("POST", "/v1/jobs", body=body))["id"]
        site.kill()
        await site.start()
        async with site.api() as api:
            assert (await api.call("GET", f"/v1/jobs/{held}"))["state"] == "ACCEPTED"
            assert (await api.call("POST", "/v1/jobs", body=body))["id"] == held
            done = await api.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\ntrue\n"})
            assert (await ended(api, done["id"]))["state"] == "FINISHED"
