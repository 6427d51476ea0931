"""The egress ledger as rows of ``edged.usage``."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from edged.config import Config
from edged.usage import Span, Usage, day_of
from services.egress.ledger import HOURS, store_of

_KEYS = (HOURS.c.hour, HOURS.c.vo, HOURS.c.account, HOURS.c.job_class)


def records(config: Config, span: Span) -> Iterable[Usage]:
    """Entry point of group ``edged.usage``."""
    if config.egress is None or not (store := store_of(config)).exists():
        return []
    with store.reading() as connection:
        return rows(connection, span)


def rows(connection: sa.Connection, span: Span) -> list[Usage]:
    """Bytes by hour, VO, account and class; the hour told as its day."""
    query = (
        sa.select(*_KEYS, sa.func.sum(HOURS.c.bytes_in), sa.func.sum(HOURS.c.bytes_out))
        .where(HOURS.c.hour >= int(span.begins), HOURS.c.hour < int(span.ends))
        .group_by(*_KEYS)
    )
    if span.vos:
        query = query.where(HOURS.c.vo.in_(span.vos))
    return [
        Usage(day=day_of(hour), vo=vo, account=account, job_class=of, bytes_in=came, bytes_out=went)
        for hour, vo, account, of, came, went in connection.execute(query)
    ]
