"""Who is signed in: in memory, for hours, each with a secret of its own against forged requests."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from edged import systemd
from edged.errors import ConfigError
from edged.identity.words import Principal

SHORTEST = 32


@dataclass(frozen=True, slots=True)
class Session:
    """``csrf`` is in every form of its pages; ``until`` is monotonic seconds.

    ``principal``: whom the provider signed in, None for the admin token.
    """

    who: str
    csrf: str
    until: float
    principal: Principal | None = None


class Sessions:
    """Those signed in. The store has digests, so that no dump of it signs anybody in."""

    def __init__(self, life_s: float, most: int) -> None:
        self._life_s, self._most = life_s, most
        self._held: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._held)

    def open(self, who: str, now: float, principal: Principal | None = None) -> str:
        """Sign somebody in; returns what the cookie carries."""
        while len(self._held) >= self._most:
            del self._held[next(iter(self._held))]
        cookie = secrets.token_urlsafe(32)
        self._held[_digest(cookie)] = Session(who, secrets.token_urlsafe(32), now + self._life_s, principal)
        return cookie

    def get(self, cookie: str, now: float) -> Session | None:
        """The session of a cookie, while it lasts."""
        key = _digest(cookie)
        found = self._held.get(key)
        if found is not None and found.until <= now:
            del self._held[key]
            return None
        return found

    def close(self, cookie: str) -> None:
        """Sign out."""
        self._held.pop(_digest(cookie), None)

    def end(self, covers: Callable[[Principal], bool]) -> list[str]:
        """Sign out everybody whom a ban covers; returns who they were."""
        ended = [key for key, held in self._held.items() if held.principal and covers(held.principal)]
        return [self._held.pop(key).who for key in ended]


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, told in constant time."""
    return hmac.compare_digest(_digest(one), _digest(other))


def admin_token(file: Path | None) -> str:
    """The local admin token; empty when none is configured. Raises ConfigError for a weak or missing one."""
    if file is None:
        return ""
    try:
        text = systemd.secret(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"portal.admin_token_file: {file}: {error}"]) from None
    if len(text) < SHORTEST:
        raise ConfigError(
            [f"portal.admin_token_file: shorter than {SHORTEST} characters: openssl rand -hex 32"]
        )
    return text
