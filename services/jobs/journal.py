"""The journal: every job on disk before it is acknowledged, and each step before its effect."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edged.config import Config
from edged.identity.words import JobId
from edged.state import Store
from edged.state.migrate import Migration
from services.jobs.gpus import GpuUse
from services.jobs.model import Description, Job

META = sa.MetaData()
KEYS_AT_ONCE = 500  # parameters of one statement

JOBS = sa.Table(
    "jobs",
    META,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("vo", sa.String(64), nullable=False),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("state", sa.String(12), nullable=False, index=True),
    sa.Column(
        "owner_key", sa.String(400), unique=True
    ),  # digest of owner, role and idempotency key; NULL without
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float, index=True),
    sa.Column("description", sa.LargeBinary, nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("grant", sa.LargeBinary, nullable=False),
)

USAGE = sa.Table(
    "usage",
    META,
    sa.Column("job", sa.String(32), primary_key=True),
    sa.Column("day", sa.String(10), nullable=False, index=True),  # UTC day of its end
    sa.Column("vo", sa.String(64), nullable=False),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("job_class", sa.String(16), nullable=False),
    sa.Column("queue", sa.String(64), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("gpu_kind", sa.String(64), nullable=False),
    sa.Column("cpus", sa.Integer, nullable=False),
    sa.Column("gpus", sa.Integer, nullable=False),
    sa.Column("wall_s", sa.Float, nullable=False),
    sa.Column("cpu_s", sa.Float),  # used; NULL: not measured
    sa.Column("ended_at", sa.Float, nullable=False),
    sa.Column("gpu_measured_s", sa.Float),  # seconds of one GPU that were observed; NULL: none
    sa.Column("gpu_used_s", sa.Float),  # and those of them in which it worked
)

SETTINGS = sa.Table(
    "settings",
    META,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

CREDENTIALS = sa.Table(
    "credentials",
    META,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("record", sa.LargeBinary, nullable=False),
)


def _gpu_columns(connection: sa.Connection) -> None:
    there = {column["name"] for column in sa.inspect(connection).get_columns(USAGE.name)}
    for name in {"gpu_measured_s", "gpu_used_s"} - there:  # a database made by this version has them
        connection.execute(sa.text(f"ALTER TABLE {USAGE.name} ADD COLUMN {name} FLOAT"))


MIGRATIONS = (
    Migration(1, "jobs, usage, settings", META.create_all),
    Migration(2, "credentials", META.create_all),
    Migration(3, "GPU utilisation", _gpu_columns),
)


def open_store(config: Config) -> Store:
    """The jobs database: PostgreSQL when the site has one, else a SQLite file."""
    if config.runtime.database:
        return Store("jobs", config.runtime.database, MIGRATIONS)
    return Store.local("jobs", config.runtime.state / "jobs" / "jobs.sqlite", MIGRATIONS)


def store(config: Config) -> Store | None:
    """Entry point of group ``edged.stores``."""
    return open_store(config) if config.jobs is not None else None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Job).decode
_COMMON = ("owner", "account", "vo", "queue", "batch", "resources", "raw_state", "reason", "stdout", "stderr")
_decode_description = msgspec.msgpack.Decoder(Description).decode
_INSERT = JOBS.insert()
_UPDATE = (
    JOBS.update()
    .where(JOBS.c.id == sa.bindparam("job"))
    .values(state=sa.bindparam("now"), ended_at=sa.bindparam("ended"), record=sa.bindparam("what"))
)


def owner_key(job: Job) -> str | None:
    """What makes a repeated submission the same job: the key, from the same person in the same role."""
    if not job.key:
        return None
    said = (job.owner.issuer, job.owner.subject, job.vo, job.account, job.key)
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()


def insert(jobs: Sequence[tuple[Job, Description, bytes]]) -> Any:
    """Work for ``Store.write``: new jobs with their grants. IntegrityError when a key exists."""
    rows = [
        {
            "id": job.id,
            "vo": job.vo,
            "account": job.account,
            "state": job.state.value,
            "owner_key": owner_key(job),
            "created_at": job.created_at,
            "ended_at": job.ended_at,
            "description": _encode(description),
            "record": _encode(job),
            "grant": grant,
        }
        for job, description, grant in jobs
    ]
    return lambda connection: connection.execute(_INSERT, rows) and None


def update(job: Job) -> Any:
    """Work for ``Store.write``: the job as it is now, encoded now."""
    row = {"job": job.id, "now": job.state.value, "ended": job.ended_at, "what": _encode(job)}
    return lambda connection: connection.execute(_UPDATE, row) and None


def delete(*jobs: JobId) -> Any:
    """Work for ``Store.write``: these jobs are gone; their usage stays."""
    return lambda connection: connection.execute(JOBS.delete().where(JOBS.c.id.in_(jobs))) and None


def load(connection: sa.Connection) -> list[tuple[Job, bytes]]:
    """All jobs with their grants, oldest first."""
    rows = connection.execute(sa.select(JOBS.c.record, JOBS.c.grant).order_by(JOBS.c.id))
    shared: dict[Any, Any] = {}
    return [(_with_shared(_decode(record), shared), grant) for record, grant in rows]


def _with_shared(job: Job, shared: dict[Any, Any]) -> Job:
    """What many jobs have in common exists once, as it does while they are accepted: half of a job's memory."""
    for name in _COMMON:
        value = getattr(job, name)
        setattr(job, name, shared.setdefault(value, value))
    return job


def description(connection: sa.Connection, job: JobId) -> Description | None:
    """What was asked for; None when the job is gone."""
    found = connection.scalar(sa.select(JOBS.c.description).where(JOBS.c.id == job))
    return _decode_description(found) if found is not None else None


def usage_key(job: Job) -> str:
    """What this run of the job used is kept under; a restarted job used twice."""
    return f"{job.id}.{job.run}" if job.run else job.id


def accounted(connection: sa.Connection, keys: Sequence[str]) -> set[str]:
    """Those of ``keys`` whose usage is written."""
    found: set[str] = set()
    for start in range(0, len(keys), KEYS_AT_ONCE):
        some = keys[start : start + KEYS_AT_ONCE]
        found.update(connection.scalars(sa.select(USAGE.c.job).where(USAGE.c.job.in_(some))))
    return found


def record_usage(job: Job, cpus: int, gpus: int, gpu_kind: str, use: GpuUse | None = None) -> Any:
    """Work for ``Store.write``: what an ended job used. Writing it twice leaves one row."""
    ended = job.ended_at or time.time()
    row = {
        "job": usage_key(job),
        "day": time.strftime("%Y-%m-%d", time.gmtime(ended)),
        "vo": job.vo,
        "account": job.account,
        "job_class": job.job_class.value,
        "queue": job.queue,
        "state": job.state.value,
        "gpu_kind": gpu_kind,
        "cpus": cpus,
        "gpus": gpus,
        "wall_s": wall_s(job),
        "cpu_s": job.cpu_s,
        "ended_at": ended,
        "gpu_measured_s": use.measured_s if use is not None else None,
        "gpu_used_s": use.used_s if use is not None else None,
    }

    def work(connection: sa.Connection) -> None:
        connection.execute(USAGE.delete().where(USAGE.c.job == row["job"]))
        connection.execute(USAGE.insert(), row)

    return work


def wall_s(job: Job) -> float:
    """How long it ran, by the batch system's word where it tells."""
    if job.elapsed_s is not None:
        return job.elapsed_s
    if job.started_at is None or job.ended_at is None:
        return 0.0
    return max(0.0, job.ended_at - job.started_at)


def setting(connection: sa.Connection, name: str) -> str | None:
    """A stored setting, e.g. what is drained."""
    return connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == name))


def put_setting(name: str, value: str) -> Any:
    """Work for ``Store.write``: remember a setting."""

    def work(connection: sa.Connection) -> None:
        connection.execute(SETTINGS.delete().where(SETTINGS.c.name == name))
        connection.execute(SETTINGS.insert(), {"name": name, "value": value})

    return work


def put_credential(name: str, record: bytes) -> Any:
    """Work for ``Store.write``: remember a delegated credential."""

    def work(connection: sa.Connection) -> None:
        connection.execute(CREDENTIALS.delete().where(CREDENTIALS.c.id == name))
        connection.execute(CREDENTIALS.insert(), {"id": name, "record": record})

    return work


def drop_credentials(names: Sequence[str]) -> Any:
    """Work for ``Store.write``: forget them."""
    return lambda connection: (
        connection.execute(CREDENTIALS.delete().where(CREDENTIALS.c.id.in_(names))) and None
    )


def credentials(connection: sa.Connection) -> list[bytes]:
    """All delegated credentials, as they were put."""
    return list(connection.scalars(sa.select(CREDENTIALS.c.record).order_by(CREDENTIALS.c.id)))


def regrant(job: JobId, grant: bytes) -> Any:
    """Work for ``Store.write``: another job grant, for a job that begins again."""
    return lambda connection: (
        connection.execute(JOBS.update().where(JOBS.c.id == job).values(grant=grant)) and None
    )
