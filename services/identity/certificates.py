"""The SSH certificates that were signed: serial numbers that never repeat, and which are revoked.

A certificate is written down before anyone gets it; a revocation is on disk before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from edged.config import Config
from edged.errors import NotFound
from edged.identity.grants import Ban
from edged.identity.words import Principal
from edged.state import Store
from edged.state.migrate import Migration

KEPT_S = 86400.0  # after its end a certificate is still found, by its serial in sshd's log

_META = sa.MetaData()
ISSUED = sa.Table(
    "ssh_certificates",
    _META,
    sa.Column("serial", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("account", sa.String(64), nullable=False),
    sa.Column("purpose", sa.String(128), nullable=False),
    sa.Column("principal", sa.LargeBinary, nullable=True),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("revoked_at", sa.Float, nullable=True),
)
MIGRATIONS = (Migration(1, "ssh certificates", _META.create_all),)


def store(config: Config) -> Store:
    """A SQLite file beside identity's key; it never leaves this machine."""
    return Store.local("ssh", config.runtime.state / "identity" / "ssh.sqlite", MIGRATIONS)


def create(config: Config) -> None:
    """Make the database at the first start, readable by nobody else."""
    file = config.runtime.state / "identity" / "ssh.sqlite"
    if not file.exists():
        file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        store(config).prepare()


@dataclass(slots=True)
class Issued:
    """One certificate. ``principal`` is None for those of the site's own services."""

    account: str
    purpose: str
    principal: Principal | None
    expires_at: float
    revoked_at: float | None = None


class Certificates:
    """In memory and on disk. ``clock`` gives Unix seconds."""

    name = "identity-certificates"

    def __init__(self, state: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = state
        self._clock = clock
        self._issued: dict[int, Issued] = {}
        self._last = 0
        self._forgot_at = 0.0

    @asynccontextmanager
    async def running(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        async with self._store.running(tasks):
            self._issued = await self._store.read(_load)
            self._last = max(self._issued, default=0)
            yield

    def not_ready(self) -> str | None:
        """Why no certificate could be written down now, or None."""
        return self._store.not_ready()

    async def add(self, one: Issued) -> int:
        """Write a certificate down; its serial number."""
        self._last += 1
        serial = self._last
        row = {
            "serial": serial,
            "account": one.account,
            "purpose": one.purpose,
            "principal": msgspec.msgpack.encode(one.principal) if one.principal else None,
            "expires_at": one.expires_at,
        }
        await self._store.write(lambda c: c.execute(ISSUED.insert().values(row)) and None)
        self._issued[serial] = one
        await self._forget()
        return serial

    async def revoke(self, serial: int) -> Issued:
        """Revoke one. Raises NotFound for a serial that was never given, or whose certificate has ended."""
        one = self._issued.get(serial)
        if one is None or one.expires_at <= self._clock():
            raise NotFound("no valid certificate with this serial")
        await self._revoke([serial])
        return one

    async def revoke_covered(self, ban: Ban) -> list[int]:
        """Revoke those of people whom a ban covers; their serials."""
        now = self._clock()
        hit = [
            serial
            for serial, one in self._issued.items()
            if one.principal and one.expires_at > now and one.revoked_at is None and ban.covers(one.principal)
        ]
        if hit:
            await self._revoke(hit)
        return hit

    def revoked(self) -> list[int]:
        """Serials for the revocation list: revoked and not ended (with a margin for other clocks)."""
        now = self._clock()
        return [
            serial
            for serial, one in self._issued.items()
            if one.revoked_at is not None and one.expires_at + KEPT_S > now
        ]

    async def _revoke(self, serials: list[int]) -> None:
        now = self._clock()
        change = ISSUED.update().where(ISSUED.c.serial.in_(serials)).values(revoked_at=now)
        await self._store.write(lambda c: c.execute(change) and None)
        for serial in serials:
            self._issued[serial].revoked_at = now

    async def _forget(self) -> None:
        """Drop what ended long ago, at most once an hour; the last serial stays, so that none comes again."""
        now = self._clock()
        if now < self._forgot_at + 3600:
            return
        self._forgot_at = now
        old = [s for s, one in self._issued.items() if one.expires_at + KEPT_S <= now and s != self._last]
        if old:
            bound = now - KEPT_S
            gone = ISSUED.delete().where(ISSUED.c.expires_at <= bound, ISSUED.c.serial != self._last)
            await self._store.write(lambda c: c.execute(gone) and None)
        for serial in old:
            self._issued.pop(serial, None)


def _load(connection: sa.Connection) -> dict[int, Issued]:
    return {
        row.serial: Issued(
            row.account,
            row.purpose,
            msgspec.msgpack.decode(row.principal, type=Principal) if row.principal else None,
            row.expires_at,
            row.revoked_at,
        )
        for row in connection.execute(sa.select(ISSUED))
    }
