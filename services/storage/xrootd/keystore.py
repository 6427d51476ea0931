"""The issuers' keys as libscitokens keeps them: with them the servers ask nobody, and trust what edged trusts.

Form (scitokens-cpp 0.7.3): ``$XDG_CACHE_HOME/scitokens/scitokens_cpp.sqllite``, table ``keycache``; keys are
``{"jwks": {"keys": […]}, "expires": epoch, "next_update": epoch}``. A reader needs no write access.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edged.config.identity import Issuer
from edged.errors import Upstream
from edged.identity.keycache import KeyCache
from edged.identity.keys import read_jwks

FILE = Path("scitokens/scitokens_cpp.sqllite")  # its own spelling
SCHEMA = "CREATE TABLE keycache(issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)"

Keys = Mapping[str, "KeptKeys"]


class KeptKeys:
    """One issuer's usable keys and when they stop counting (Unix seconds, whole)."""

    __slots__ = ("expires", "keys")

    def __init__(self, keys: list[dict[str, Any]], expires: int) -> None:
        self.keys = keys
        self.expires = expires

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeptKeys) and (self.keys, self.expires) == (other.keys, other.expires)

    def __hash__(self) -> int:
        return hash(self.expires)

    def row(self) -> str:
        """As libscitokens reads it. It never asks before ``expires``."""
        return json.dumps({"jwks": {"keys": self.keys}, "expires": self.expires, "next_update": self.expires})


def current(cache: KeyCache, issuers: Iterable[Issuer], now: float) -> dict[str, KeptKeys]:
    """What edged itself would verify with at ``now``; issuers without such keys are left out."""
    found: dict[str, KeptKeys] = {}
    for issuer in issuers:
        document = cache.read(issuer.url)
        if document is None:
            continue
        keys = acceptable(document.jwks)
        expires = int(document.fetched_at + issuer.keep_s)
        if keys and expires > now:
            found[issuer.url] = KeptKeys(keys, expires)
    return found


def acceptable(jwks: str) -> list[dict[str, Any]]:
    """The entries of a document that edged accepts, each judged alone."""
    try:
        entries = json.loads(jwks)["keys"]
    except (ValueError, KeyError, TypeError):
        return []
    return [entry for entry in entries if _accepted(entry)]


def _accepted(entry: object) -> bool:
    try:
        read_jwks(json.dumps({"keys": [entry]}).encode())
    except Upstream:
        return False
    return True


def write(directory: Path, keys: Keys) -> None:
    """Replace the whole file; a server that reads it meanwhile sees the old or the new one."""
    target = directory / FILE
    for place in (directory, target.parent):
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o755)  # the servers are other users, whatever our umask
    partial = target.with_suffix(f".{os.getpid()}")
    partial.unlink(missing_ok=True)
    database = sqlite3.connect(partial)
    try:
        database.execute(SCHEMA)
        rows = [(url, kept.row()) for url, kept in sorted(keys.items())]
        database.executemany("INSERT INTO keycache VALUES(?, ?)", rows)
        database.commit()
    finally:
        database.close()
    partial.chmod(0o644)
    partial.replace(target)


def own(jwk: dict[str, Any]) -> KeptKeys:
    """A key of ours, good for a day."""
    return KeptKeys([jwk], int(time.time()) + 86400)
