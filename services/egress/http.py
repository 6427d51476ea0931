"""The HTTP side of the gate: CONNECT and plain http requests in, short answers out. Pure."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from urllib.parse import unquote

from edged.egress.wishes import Credentials, Target, target_of_authority
from edged.errors import BadRequest
from edged.identity.words import JobId
from services.egress.heads import AnswerHead, Head, body_length

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
_VIA = b"via"
_PSEUDONYM = "edged"

# RFC 9110 §7.6.1, and what only a proxy reads
_HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization",
        b"te", b"trailer", b"transfer-encoding", b"upgrade",
    )
)  # fmt: skip
# no framing field may be hidden by naming it in Connection
_NEVER_NAMED = frozenset((b"content-length", b"host", b"transfer-encoding"))


@dataclass(frozen=True, slots=True)
class Forward:
    """One plain http request, re-written for its origin: ``head`` then exactly ``body`` more bytes."""

    target: Target
    head: bytes
    body: int


def credentials_of(head: Head) -> Credentials | None:
    """The Basic Proxy-Authorization (RFC 7617). Raises BadRequest when there is one that is none."""
    values = head.all(b"proxy-authorization")
    if not values:
        return None
    scheme, _, coded = values[0].partition(b" ")
    if len(values) > 1 or scheme.lower() != b"basic":
        raise BadRequest("Proxy-Authorization must be Basic, with the job id and its token")
    try:
        user, colon, password = base64.b64decode(coded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise BadRequest("Proxy-Authorization is not base64") from None
    if not colon or not user:
        raise BadRequest("Proxy-Authorization has no user")
    return Credentials(JobId(unquote(user)), unquote(password))


def connect_target(head: Head) -> Target:
    """Where CONNECT wants to go. Raises BadRequest (also for a body: RFC 9110 §9.3.6 gives it no meaning)."""
    if head.all(b"transfer-encoding") or any(value != b"0" for value in head.all(b"content-length")):
        raise BadRequest("CONNECT has no body")
    return target_of_authority(head.target)


def forward_of(head: Head, us: str) -> Forward:
    """An absolute-form request made ready for its origin. Raises BadRequest.

    The authority of the URL wins over Host (RFC 9112 §3.2.2); each request gets a connection of its own.
    """
    if not head.target.lower().startswith("http://"):
        raise BadRequest("this is a proxy: send an absolute http URL, or CONNECT")
    authority, slash, rest = head.target[7:].partition("/")
    path = slash + rest
    if not slash:
        authority, question, query = authority.partition("?")
        path = "/" + question + query
    if "@" in authority:
        raise BadRequest("no credentials in a URL")
    if any(_is_own(value, us) for value in head.all(_VIA)):
        raise BadRequest("the request came through this gate before: a loop")
    target = target_of_authority(authority, default_port=80)
    body = body_length(head)
    named = {name.strip().lower() for value in head.all(b"connection") for name in value.split(b",")}
    drop = _HOP_BY_HOP | {b"host"} | (named - _NEVER_NAMED)
    lines = [
        f"{head.method} {path.partition('#')[0]} HTTP/1.{head.minor}".encode(),
        b"host: " + authority.encode(),
    ]
    lines += [name + b": " + value for name, value in head.fields if name not in drop]
    lines += [f"via: 1.{head.minor} {us}".encode(), b"connection: close", b"", b""]
    return Forward(target, b"\r\n".join(lines), body)


def _is_own(via: bytes, us: str) -> bool:
    return any(part.split()[1:2] == [us.encode()] for part in via.split(b","))


def answer_for_client(head: AnswerHead, us: str) -> bytes:
    """An origin's head as the client gets it; the connection ends with the body, which bounds it."""
    drop = _HOP_BY_HOP - {b"transfer-encoding", b"trailer"}
    named = {
        name.strip().lower()
        for key, value in head.fields
        if key == b"connection"
        for name in value.split(b",")
    } - _NEVER_NAMED
    lines = [head.line]
    lines += [name + b": " + value for name, value in head.fields if name not in drop and name not in named]
    lines += [f"via: 1.1 {us}".encode(), b"connection: close", b"", b""]
    return b"\r\n".join(lines)


def pseudonym(site: str) -> str:
    """Our name in Via (RFC 9110 §7.6.3)."""
    return f"{_PSEUDONYM}-{site}"


_STATUS = {
    400: "Bad Request",
    403: "Forbidden",
    407: "Proxy Authentication Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def refusal(status: int, reason: str, error: str) -> bytes:
    """A whole answer that says no. ``error`` is a Proxy-Status error type (RFC 9209 §2.3)."""
    body = f"edged: {reason}\n".encode()
    challenge = (
        'proxy-authenticate: Basic realm="edged job token", charset="UTF-8"\r\n' if status == 407 else ""
    )
    retry = "retry-after: 5\r\n" if status in (429, 503) else ""
    head = (
        f"HTTP/1.1 {status} {_STATUS[status]}\r\n"
        f"proxy-status: edged; error={error}\r\n{challenge}{retry}"
        f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(body)}\r\n"
        "cache-control: no-store\r\nproxy-connection: close\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
