"""Locks in the way of a request: the If header evaluated, and tokens demanded where something is locked."""

from __future__ import annotations

from edged.errors import BadRequest, EdgeError, PreconditionFailed
from services.storage.conditions import etag
from services.storage.exchange import Exchange
from services.storage.lockfile import Locks
from services.storage.locks import IfList, LockTable, holds, parse_if, tokens_in
from services.storage.namespace import Namespace, Target, path_of
from services.storage.properties import is_directory


class Guard:
    """Asks the lock table before anything changes. Free of cost while there is no lock and no If header."""

    def __init__(self, locks: Locks, namespace: Namespace) -> None:
        self.locks = locks
        self._namespace = namespace

    async def change(
        self, exchange: Exchange, target: Target, *, deep: bool = False, member: bool = False
    ) -> None:
        """Before changing ``target``. Raises PreconditionFailed (If) or Locked."""
        header = exchange.headers.get("If")
        if header is None and not self.locks.any():
            return
        table = await self.locks.now()
        lists = parse_if(header) if header is not None else ()
        if lists and not await self._holds(exchange, lists, table):
            raise PreconditionFailed("the If header does not hold")
        table.check(target.key, tokens_in(lists), exchange.holder, deep=deep, member=member)

    async def condition(self, exchange: Exchange) -> None:
        """Only the If header. Raises PreconditionFailed."""
        lists = parse_if(exchange.headers.get("If", ""))
        if not await self._holds(exchange, lists, await self.locks.now()):
            raise PreconditionFailed("the If header does not hold")

    async def _holds(self, exchange: Exchange, lists: tuple[IfList, ...], table: LockTable) -> bool:
        etags: dict[str, str | None] = {}
        keys = {item.tag: self._key_of(item.tag) for item in lists if item.tag}
        targets = {self._key_of(item.tag): item.tag for item in lists if item.tag}
        for item in lists:
            if any(condition.etag for condition in item.conditions):
                key = keys.get(item.tag, exchange.target.key)
                etags[key] = await self._etag(exchange, targets.get(key))
        return holds(lists, exchange.target.key, lambda tag: keys[tag], etags.get, table)

    def _key_of(self, tag: str) -> str:
        found = self._namespace.locate(path_of(tag))
        if not isinstance(found, Target):
            raise BadRequest("an If header about something that is not here")
        return found.key

    async def _etag(self, exchange: Exchange, tag: str | None) -> str | None:
        target = exchange.target
        if tag is not None:
            other = self._namespace.locate(path_of(tag))
            if not isinstance(other, Target) or other.export is not target.export:
                return None
            target = other
        try:
            entry = await exchange.look(target)
        except EdgeError:
            return None
        return etag(entry) if entry is not None and not is_directory(entry) else None

    async def gone(self, target: Target) -> None:
        """A resource was removed or moved away: its locks end."""
        if self.locks.any():
            async with self.locks.changing() as table:
                table.forget_tree(target.key)
