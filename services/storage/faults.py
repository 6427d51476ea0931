"""Refusals only WebDAV knows, and how any refusal looks on this endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from aiohttp import web

from edged.errors import Conflict, Denied, EdgeError
from edged.http.problems import answer, headers_of, status_of


class Locked(Conflict):
    """A lock is in the way and its token was not sent (RFC 4918 §11.3)."""

    code = "locked"

    def __init__(self, message: str, *, hrefs: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.hrefs = tuple(hrefs)


class InfinityRefused(Denied):
    """PROPFIND Depth: infinity is off here (RFC 4918 §9.1)."""

    code = "propfind-finite-depth"


class MethodRefused(EdgeError):
    """The resource exists, and this method is not for it."""

    code = "method-not-allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class UnsupportedBody(EdgeError):
    """The body is of a kind this method does not take (RFC 4918 §9.3.1)."""

    code = "unsupported-body"


class Unprocessable(EdgeError):
    """Well-formed, but it means nothing here (RFC 4918 §11.2)."""

    code = "unprocessable"


class BadGateway(EdgeError):
    """A MOVE or COPY to a server that is not this one (RFC 4918 §9.8.5)."""

    code = "other-server"


_OWN_STATUS: dict[type[EdgeError], int] = {
    Locked: 423,
    MethodRefused: 405,
    UnsupportedBody: 415,
    Unprocessable: 422,
    BadGateway: 502,
}


def status(error: EdgeError) -> int:
    """The status of an error on this endpoint."""
    own = _OWN_STATUS.get(type(error))
    return own if own is not None else status_of(error)


def response(error: EdgeError) -> web.Response:
    """The answer: RFC 4918 §16 condition codes as XML where there is one, else a problem document."""
    code = status(error)
    if isinstance(error, Locked):
        hrefs = "".join(f"<D:href>{escape(href)}</D:href>" for href in error.hrefs)
        return _condition(code, f"<D:lock-token-submitted>{hrefs}</D:lock-token-submitted>")
    if isinstance(error, InfinityRefused):
        return _condition(code, "<D:propfind-finite-depth/>")
    if type(error) not in _OWN_STATUS:
        return answer(error)
    headers = headers_of(error)
    if isinstance(error, MethodRefused):
        headers["Allow"] = error.allow
    return web.Response(status=code, text=error.message + "\n", headers=headers)


def _condition(code: int, xml: str) -> web.Response:
    body = f'<?xml version="1.0" encoding="utf-8"?>\n<D:error xmlns:D="DAV:">{xml}</D:error>\n'
    return web.Response(
        status=code, body=body.encode(), headers={"Content-Type": 'application/xml; charset="utf-8"'}
    )
