"""The accounts by hour, in the store: what `edged egress usage`, the portal and the API read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from edged.config import Config
from edged.state import Store
from edged.state.migrate import Migration
from services.egress.accounts import AccountKey, Figures

HOUR_S = 3600
META = sa.MetaData()

_WHO = ("vo", "account", "job_class", "job", "source", "destination", "way")
_SUMS = ("bytes_out", "bytes_in", "connections", "observed")


def _who_columns() -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(255), primary_key=True) for name in _WHO]


HOURS = sa.Table(
    "egress_hours",
    META,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),  # Unix seconds, a full hour
    *_who_columns(),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
)
REFUSALS = sa.Table(
    "egress_refusals",
    META,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    *_who_columns(),
    sa.Column("outcome", sa.String(40), primary_key=True),
    sa.Column("refused", sa.BigInteger, nullable=False),
)

MIGRATIONS = (Migration(1, "egress accounts", META.create_all),)


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a usage answer. Bytes; ``refused`` counts connections by outcome."""

    group: dict[str, str]
    bytes_out: int = 0
    bytes_in: int = 0
    connections: int = 0
    observed: int = 0
    refused: dict[str, int] = {}


def store_of(config: Config) -> Store:
    """The service's database: the site's PostgreSQL, or a file of its own."""
    if config.runtime.database:
        return Store("egress", config.runtime.database, MIGRATIONS)
    return Store.local("egress", config.runtime.state / "egress" / "egress.sqlite", MIGRATIONS)


class Ledger:
    """Writes figures into their hour and answers who used what."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def add(self, figures: Sequence[Figures], now: float) -> None:
        """Add figures to the hour of ``now``, all in one transaction. Raises Unavailable or NoSpace."""
        hour = int(now) // HOUR_S * HOUR_S
        hours = [_hour_row(hour, item) for item in figures if item.up or item.down or item.connections]
        refusals = [
            {"hour": hour, **_who(item.key), "outcome": outcome.value, "refused": count}
            for item in figures
            for outcome, count in item.refused.items()
        ]
        await self.store.write(lambda connection: _add(connection, hours, refusals))

    async def forget(self, before: float) -> None:
        """Drop hours older than ``before`` (Unix seconds)."""

        def work(connection: sa.Connection) -> None:
            for table in (HOURS, REFUSALS):
                connection.execute(table.delete().where(table.c.hour < before))

        await self.store.write(work)

    async def usage(self, since: float, until: float, by: Sequence[str]) -> list[Usage]:
        """Sums over [since, until) for each combination of the words in ``by`` (from ``GROUPS``)."""
        return await self.store.read(lambda connection: usage(connection, since, until, by))


GROUPS = ("hour", *_WHO)


def usage(connection: sa.Connection, since: float, until: float, by: Sequence[str]) -> list[Usage]:
    """See ``Ledger.usage``. Raises KeyError for a word that is not in ``GROUPS``."""
    first = int(since) // HOUR_S * HOUR_S
    sums: dict[tuple[str, ...], list[int]] = {}
    refused: dict[tuple[str, ...], dict[str, int]] = {}
    columns = [HOURS.c[word] for word in by]
    totals = [sa.func.sum(HOURS.c[name]) for name in _SUMS]
    query = sa.select(*columns, *totals).where(HOURS.c.hour >= first, HOURS.c.hour < until).group_by(*columns)
    for row in connection.execute(query):
        sums[tuple(str(value) for value in row[: len(by)])] = [int(value or 0) for value in row[len(by) :]]
    columns = [REFUSALS.c[word] for word in by]
    query = (
        sa.select(*columns, REFUSALS.c.outcome, sa.func.sum(REFUSALS.c.refused))
        .where(REFUSALS.c.hour >= first, REFUSALS.c.hour < until)
        .group_by(*columns, REFUSALS.c.outcome)
    )
    for row in connection.execute(query):
        key = tuple(str(value) for value in row[: len(by)])
        refused.setdefault(key, {})[row[len(by)]] = int(row[len(by) + 1])
    return [
        Usage(
            group=dict(zip(by, key, strict=True)),
            refused=refused.get(key, {}),
            **dict(zip(_SUMS, sums.get(key, [0] * len(_SUMS)), strict=True)),
        )
        for key in sorted({*sums, *refused})
        if any(sums.get(key, ())) or refused.get(key)
    ]


def last_facts(connection: sa.Connection, job: str) -> dict[str, str]:
    """VO, account and class under which a job was last counted; empty when it never was."""
    words = (HOURS.c.vo, HOURS.c.account, HOURS.c.job_class)
    query = sa.select(*words).where(HOURS.c.job == job).order_by(HOURS.c.hour.desc()).limit(1)
    row = connection.execute(query).first()
    return dict(row._mapping) if row is not None else {}


def _hour_row(hour: int, item: Figures) -> dict[str, object]:
    return {
        "hour": hour,
        **_who(item.key),
        "bytes_out": item.up,
        "bytes_in": item.down,
        "connections": item.connections,
        "observed": item.observed,
    }


def _who(key: AccountKey) -> dict[str, object]:
    return dict(zip(_WHO, (str(word) for word in key), strict=True))


def _add(
    connection: sa.Connection, hours: Sequence[dict[str, object]], refusals: Sequence[dict[str, object]]
) -> None:
    insert: Any = sqlite_insert
    if connection.dialect.name == "postgresql":
        # only here: 6 MB and a tenth of the time to start, which a site on SQLite shall not pay
        from sqlalchemy.dialects.postgresql import insert
    for table, rows, sums in ((HOURS, hours, _SUMS), (REFUSALS, refusals, ("refused",))):
        if rows:
            statement = insert(table)
            add = {name: table.c[name] + statement.excluded[name] for name in sums}
            keys = [column.name for column in table.primary_key]
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=add), rows)
