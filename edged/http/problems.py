"""The one place where an error becomes an HTTP status and a problem document (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from aiohttp import web

from edged import errors
from edged.logs import get_logger, request_id

log = get_logger("edged.http")

STATUS: Mapping[type[errors.EdgeError], int] = {
    errors.HeadTooLarge: 431,
    errors.TooLarge: 413,
    errors.BadRequest: 400,
    errors.Unauthenticated: 401,
    errors.Denied: 403,
    errors.NotFound: 404,
    errors.Unsupported: 405,
    errors.Conflict: 409,
    errors.PreconditionFailed: 412,
    errors.Busy: 429,
    errors.NoSpace: 507,
    errors.RangeNotSatisfiable: 416,
    errors.Unavailable: 503,
    errors.UnknownOutcome: 503,
    errors.UpstreamTimeout: 504,
    errors.Upstream: 502,
}
CHALLENGE = 'Bearer realm="edged", error="invalid_token"'  # RFC 6750 §3


def status_of(error: errors.EdgeError) -> int:
    """The HTTP status of an error, by its nearest listed ancestor; 500 when none is."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def headers_of(error: errors.EdgeError) -> dict[str, str]:
    """The headers the status needs: WWW-Authenticate for 401, Retry-After for 429 and 503."""
    if isinstance(error, errors.Unauthenticated):
        return {"WWW-Authenticate": CHALLENGE}
    if isinstance(error, errors.Busy):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, errors.Unavailable | errors.UnknownOutcome):
        return {"Retry-After": "5"}
    return {}


def problem(error: errors.EdgeError) -> web.Response:
    """The problem document of an expected error; what only the log may know is not in it."""
    status = status_of(error)
    body = {
        "type": f"urn:edged:problem:{error.code}",
        "title": error.code,
        "status": status,
        "detail": error.message,
        "request": request_id.get(),
        **{key: value for key, value in error.values.items() if isinstance(value, str | int | float | list)},
    }
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/problem+json",
        headers=headers_of(error),
    )


def answer(error: BaseException) -> web.Response:
    """The answer to any exception: expected ones as they are, others as 500 with the trace in the log."""
    if isinstance(error, errors.EdgeError):
        if status_of(error) >= 500:
            log.warning("request failed", extra={"code": error.code, "reason": str(error)})
        return problem(error)
    log.error("unexpected error", exc_info=error)
    return problem(errors.EdgeError("internal error; the log of this site knows more under this request id"))
