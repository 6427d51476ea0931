"""The journal's usage as rows of ``edged.usage``."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from edged.config import Config
from edged.usage import Span, Usage
from services.jobs import journal
from services.jobs.journal import USAGE

_KEYS = (USAGE.c.day, USAGE.c.vo, USAGE.c.account, USAGE.c.job_class, USAGE.c.queue, USAGE.c.gpu_kind)
_ALLOCATED = USAGE.c.wall_s * USAGE.c.cpus


def records(config: Config, span: Span) -> Iterable[Usage]:
    """Entry point of group ``edged.usage``."""
    store = journal.store(config)
    if store is None or not store.exists():
        return []
    with store.reading() as connection:
        return rows(connection, span)


def rows(connection: sa.Connection, span: Span) -> list[Usage]:
    """Sums by day, VO, account, class, queue and GPU kind."""
    query = (
        sa.select(
            *_KEYS,
            sa.func.count().label("jobs"),
            sa.func.sum(sa.case((USAGE.c.state == "FINISHED", 1), else_=0)).label("finished"),
            sa.func.sum(USAGE.c.wall_s).label("wall_s"),
            sa.func.sum(_ALLOCATED).label("cpu_allocated_s"),
            sa.func.sum(sa.case((USAGE.c.cpu_s.is_not(None), _ALLOCATED), else_=0.0)).label("cpu_measured_s"),
            sa.func.sum(USAGE.c.cpu_s).label("cpu_used_s"),
            sa.func.sum(USAGE.c.wall_s * USAGE.c.gpus).label("gpu_allocated_s"),
            sa.func.coalesce(sa.func.sum(USAGE.c.gpu_measured_s), 0.0).label("gpu_measured_s"),
            sa.func.sum(USAGE.c.gpu_used_s).label("gpu_used_s"),
        )
        .where(USAGE.c.day.between(span.first, span.last))
        .group_by(*_KEYS)
        .order_by(*_KEYS)
    )
    if span.vos:
        query = query.where(USAGE.c.vo.in_(span.vos))
    return [Usage(**row) for row in connection.execute(query).mappings()]
