"""Every way a wish to go out can end: the closed set behind metrics, accounts and answers."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """Why a connection was let through or refused."""

    ALLOWED = "allowed"
    OBSERVED = "observed"
    NO_SOURCE = "unknown-source"
    NO_RULE = "no-rule"
    RULE = "refused-by-rule"
    ADDRESS = "refused-address"
    TOKEN = "job-token"  # noqa: S105 - the name of a refusal
    LIMIT = "limit"
    NAME = "name-not-resolved"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    MALFORMED = "malformed"
    BUSY = "busy"


PASSED = frozenset((Outcome.ALLOWED, Outcome.OBSERVED))
