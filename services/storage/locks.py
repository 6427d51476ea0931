"""WebDAV locks (RFC 4918 §6, §7) and the If header (§10.4). Pure; ``lockfile.py`` keeps and shares them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from edged.errors import BadRequest
from edged.identity.grants import within
from services.storage.faults import Locked


class Lock(msgspec.Struct, frozen=True, array_like=True):
    """One lock. ``key`` is the locked resource's Target.key, ``holder`` who may use the token."""

    token: str
    key: str
    href: str
    deep: bool
    exclusive: bool
    owner: str
    holder: str
    timeout_s: float
    expires_at: float

    def covers(self, key: str) -> bool:
        """Whether ``key`` is locked by it: itself, or anything below a lock of depth infinity."""
        return key == self.key or (self.deep and within(key, self.key))


class LockTable:
    """All locks of a moment. Changing it returns nothing to the store by itself."""

    def __init__(self, locks: Iterable[Lock] = ()) -> None:
        self._locks = {lock.token: lock for lock in locks}

    def __len__(self) -> int:
        return len(self._locks)

    def __iter__(self) -> Iterator[Lock]:
        return iter(self._locks.values())

    def expire(self, now: float) -> None:
        """Forget those whose time is over."""
        self._locks = {token: lock for token, lock in self._locks.items() if lock.expires_at > now}

    def covering(self, key: str) -> list[Lock]:
        """The locks on a resource, its own and inherited ones."""
        return [lock for lock in self if lock.covers(key)]

    def below(self, key: str) -> list[Lock]:
        """The locks on anything inside a collection, not on itself."""
        return [lock for lock in self if lock.key != key and within(lock.key, key)]

    def add(self, lock: Lock) -> None:
        """Raises Locked when another lock forbids it: an exclusive one never shares (§6.2)."""
        rivals = self.covering(lock.key) + (self.below(lock.key) if lock.deep else [])
        in_the_way = [r for r in rivals if r.exclusive or lock.exclusive]
        if in_the_way:
            raise Locked("already locked", hrefs=[r.href for r in in_the_way])
        self._locks[lock.token] = lock

    def get(self, token: str) -> Lock | None:
        return self._locks.get(token)

    def refresh(self, token: str, timeout_s: float, now: float) -> Lock:
        """The same lock with a new end."""
        lock = msgspec.structs.replace(self._locks[token], timeout_s=timeout_s, expires_at=now + timeout_s)
        self._locks[token] = lock
        return lock

    def remove(self, token: str) -> None:
        self._locks.pop(token, None)

    def forget_tree(self, key: str) -> None:
        """The resource is gone, and its locks with it (§7.5, §9.6)."""
        self._locks = {t: lock for t, lock in self._locks.items() if not within(lock.key, key)}

    def check(
        self, key: str, tokens: frozenset[str], holder: str, *, deep: bool = False, member: bool = False
    ) -> None:
        """Raises Locked unless the caller holds and sent a token for every lock a change must respect.

        ``deep``: everything below changes too (DELETE, MOVE). ``member``: a name is added to or taken
        from the parent, which a lock on the parent forbids (§7.4).
        """
        concerned = self.covering(key)
        if deep:
            concerned += self.below(key)
        missing = [lock for lock in concerned if not _held(lock, tokens, holder)]
        if missing and not _shared_satisfied(missing, concerned, tokens, holder):
            raise Locked("locked", hrefs=[lock.href for lock in missing])
        if member and (parent := key.rpartition("/")[0]):
            around = self.covering(parent)
            if around and not any(_held(lock, tokens, holder) for lock in around):
                raise Locked("the collection is locked", hrefs=[lock.href for lock in around])


def _held(lock: Lock, tokens: frozenset[str], holder: str) -> bool:
    return lock.token in tokens and lock.holder == holder


def _shared_satisfied(missing: list[Lock], all_: list[Lock], tokens: frozenset[str], holder: str) -> bool:
    """With shared locks, one token among those of the same resource is enough (§6.2)."""
    held = {lock.key for lock in all_ if not lock.exclusive and _held(lock, tokens, holder)}
    return all(not lock.exclusive and lock.key in held for lock in missing)


@dataclass(frozen=True, slots=True)
class Condition:
    """One state token or entity tag of an If list, possibly negated."""

    negated: bool
    token: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class IfList:
    """All must hold. ``tag`` is the resource it is about; empty: the one of the request."""

    tag: str
    conditions: tuple[Condition, ...]


_PART = re.compile(
    r'\s*(?:(?P<not>Not\b)|<(?P<uri>[^<>\s]{1,2000})>|\[(?P<etag>(?:W/)?"[^"]*")\]|(?P<p>[()]))', re.I
)
MAX_CONDITIONS = 200


def parse_if(header: str) -> tuple[IfList, ...]:
    """The lists of an If header. Raises BadRequest."""
    lists: list[IfList] = []
    tag, negated, inside, at = "", False, False, 0
    current: list[Condition] = []
    count = 0
    while header[at:].strip():
        match = _PART.match(header, at)
        count += 1
        if match is None or count > MAX_CONDITIONS:
            raise BadRequest("malformed If header")
        at = match.end()
        if match["p"] == "(" and not inside:
            inside, current = True, []
        elif match["p"] == ")" and inside and current and not negated:
            lists.append(IfList(tag, tuple(current)))
            inside = False
        elif match["not"] and inside and not negated:
            negated = True
        elif match["uri"] and not inside:
            tag = match["uri"]
        elif (match["uri"] or match["etag"]) and inside:
            current.append(Condition(negated, match["uri"] or "", match["etag"] or ""))
            negated = False
        else:
            raise BadRequest("malformed If header")
    if inside or not lists:
        raise BadRequest("malformed If header")
    return tuple(lists)


def tokens_in(lists: Iterable[IfList]) -> frozenset[str]:
    """Every state token the header names: what counts as submitted (§10.4.1)."""
    return frozenset(c.token for item in lists for c in item.conditions if c.token)


def holds(
    lists: Iterable[IfList],
    own_key: str,
    key_of: Callable[[str], str],
    etag_of: Callable[[str], str | None],
    table: LockTable,
) -> bool:
    """Whether any list holds. ``key_of``: tag → Target.key; ``etag_of``: key → its entity tag."""
    for item in lists:
        key = key_of(item.tag) if item.tag else own_key
        if all(_true(condition, key, etag_of, table) != condition.negated for condition in item.conditions):
            return True
    return False


def _true(condition: Condition, key: str, etag_of: Callable[[str], str | None], table: LockTable) -> bool:
    if condition.etag:
        return etag_of(key) == condition.etag
    lock = table.get(condition.token)
    return lock is not None and lock.covers(key)


def parse_timeout(header: str | None, longest_s: float) -> float:
    """Seconds of a Timeout header (§10.7): ``Second-3600, Infinite``; at most ``longest_s``."""
    for item in (header or "").split(","):
        word = item.strip().lower()
        if word.startswith("second-") and word[7:].isascii() and word[7:].isdigit():
            return min(float(word[7:]), longest_s) or longest_s
    return longest_s


def active_lock_xml(lock: Lock, now: float, href: str) -> str:
    """The activelock element (§14.1). ``href`` is already escaped for XML."""
    remaining = max(1, round(lock.expires_at - now))
    owner = f"<D:owner>{lock.owner}</D:owner>" if lock.owner else ""
    return (
        "<D:activelock><D:locktype><D:write/></D:locktype>"
        f"<D:lockscope><D:{'exclusive' if lock.exclusive else 'shared'}/></D:lockscope>"
        f"<D:depth>{'infinity' if lock.deep else '0'}</D:depth>{owner}"
        f"<D:timeout>Second-{remaining}</D:timeout>"
        f"<D:locktoken><D:href>{lock.token}</D:href></D:locktoken>"
        f"<D:lockroot><D:href>{href}</D:href></D:lockroot></D:activelock>"
    )
