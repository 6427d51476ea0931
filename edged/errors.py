"""The one tree of errors. Raise the narrowest; only the HTTP edge knows what status it becomes.

``message`` is safe to show to whoever asked. Everything else that helps an operator goes into
``detail``, which reaches the log and never the wire.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar


class EdgeError(Exception):
    """Any expected failure. ``code`` is stable and documented; programs may compare it."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, detail: str = "", **values: object) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.values: Mapping[str, object] = values

    def __str__(self) -> str:
        return f"{self.message} ({self.detail})" if self.detail else self.message


_OBJECT = re.compile(r" ssl:(<[^>]*>|\w+)")  # aiohttp names the TLS context it was given


def words_of(error: BaseException) -> str:
    """What a library's error says, for people; its class where it says nothing."""
    return _OBJECT.sub("", str(error)) or type(error).__name__


class BadRequest(EdgeError):
    """What was sent cannot be understood, or breaks a stated limit."""

    code = "bad-request"


class TooLarge(BadRequest):
    """A body, header or listing is over its configured limit."""

    code = "too-large"


class HeadTooLarge(TooLarge):
    """A request's head is over its limit (RFC 6585 §5)."""

    code = "head-too-large"


class RangeNotSatisfiable(BadRequest):
    """The range begins past the end of the file (RFC 9110 §15.5.17)."""

    code = "range"


class Unauthenticated(EdgeError):
    """No token, or one that proves nothing: the caller may try again with another."""

    code = "unauthenticated"


class Denied(EdgeError):
    """We know who asks, and the answer is no."""

    code = "denied"


class NotFound(EdgeError):
    """It does not exist, or the caller may not know that it does."""

    code = "not-found"


class Unsupported(EdgeError):
    """The thing exists, but this cannot be done to it (RFC 9110 §15.5.6)."""

    code = "unsupported"


class Conflict(EdgeError):
    """The thing is in a state that does not allow this."""

    code = "conflict"


class Incomplete(Conflict):
    """All that was asked is done, but for ``failed``: path → its error's code and message."""

    code = "incomplete"

    @property
    def failed(self) -> Mapping[bytes, Sequence[str]]:
        """The first of them: there may be more than fit a message."""
        failed = self.values.get("failed")
        return failed if isinstance(failed, Mapping) else {}


class PreconditionFailed(EdgeError):
    """An If-* header of the caller does not hold."""

    code = "precondition-failed"


class Busy(EdgeError):
    """A limit is reached; ``retry_after_s`` says when it is worth asking again."""

    code = "busy"

    def __init__(
        self, message: str, *, retry_after_s: float = 5.0, detail: str = "", **values: object
    ) -> None:
        super().__init__(message, detail=detail, **values)
        self.retry_after_s = retry_after_s


class Unavailable(EdgeError):
    """A part of edged, or something it stands on, does not answer now. Nothing was done."""

    code = "unavailable"


class Upstream(EdgeError):
    """Another site's server failed us, or sent what it must not send."""

    code = "upstream"


class UpstreamTimeout(Upstream):
    """Another site's server did not answer in time."""

    code = "upstream-timeout"


class NoSpace(EdgeError):
    """A disk is full or a quota is used up."""

    code = "no-space"


class UnknownOutcome(EdgeError):
    """The request may or may not have had its effect: look before repeating it."""

    code = "unknown-outcome"


class ConfigError(EdgeError):
    """The configuration cannot be used. ``problems`` has one ``dotted.path: what to fix`` each."""

    code = "config"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
