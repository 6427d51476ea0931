"""A decision explained without the daemon: the configuration, the cached keys, the bans on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from edged.config import Config
from edged.errors import EdgeError
from edged.identity.grants import Ban
from edged.identity.judge import Judge, Judged
from edged.identity.keycache import KeyCache
from edged.identity.keys import KeySet, read_jwks
from edged.identity.wire import Explained
from edged.identity.words import IssuerUrl, Principal, Verdict
from services.identity.ledger import BANS


def explain_offline(config: Config, token: str) -> Explained:
    """The steps of the decision and where they end. Userinfo and introspection cannot be asked here."""
    steps: list[str] = []
    judge = Judge(config)
    now = time.time()
    try:
        bans = _bans(config)
        proven = judge.prove(token, lambda issuer: _keys(config, issuer, now), now, steps.append)
        answer: Mapping[str, Any] | None = None
        if proven.issuer.claims_from != "token":
            steps.append(
                f"claims would come from {proven.issuer.claims_from}: not asked, the token's own are used"
            )
        judged = judge.decide(proven, lambda principal: _ban_on(bans, principal, now), answer, steps.append)
    except EdgeError as error:
        return Explained(tuple(steps), None, str(error), error.code)
    return Explained(tuple(steps), _verdict(judged))


def _verdict(judged: Judged) -> Verdict:
    mapped = judged.mapped
    return Verdict(
        principal=judged.principal,
        account=mapped.account,
        job_class=mapped.job_class,
        vo=mapped.vo,
        capabilities=mapped.capabilities,
        grant=b"",
        expires_at=judged.expires_at,
        token_expires_at=judged.expires_at,
        rule=mapped.rule,
    )


def _keys(config: Config, url: IssuerUrl, now: float) -> KeySet:
    """The local key file where there is one, else what the fetcher cached within ``keep_s``."""
    issuer = next(one for one in config.issuers if one.url == url)
    if issuer.jwks_file is not None:
        try:
            return read_jwks(issuer.jwks_file.read_bytes())
        except OSError:
            return KeySet()
    document = KeyCache(config.runtime.state / "issuers").read(url)
    if document is None or document.fetched_at + issuer.keep_s <= now:
        return KeySet()
    return read_jwks(document.jwks.encode())


def _bans(config: Config) -> tuple[Ban, ...]:
    file = config.runtime.state / "identity" / "identity.sqlite"
    if not file.exists():
        return ()
    engine = sa.create_engine(f"sqlite:///file:{file}?mode=ro&uri=true")
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.select(BANS.c.ban)).scalars()
            return tuple(msgspec.msgpack.decode(row, type=Ban) for row in rows)
    except sa.exc.DBAPIError:
        return ()
    finally:
        engine.dispose()


def _ban_on(bans: tuple[Ban, ...], principal: Principal, now: float) -> Ban | None:
    holding = (ban for ban in bans if ban.expires_at is None or ban.expires_at > now)
    return next((ban for ban in holding if ban.covers(principal)), None)
