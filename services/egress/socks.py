"""SOCKS5 (RFC 1928) with user and password (RFC 1929): messages in, messages out. Pure.

Each ``parse_*`` returns None while more bytes are needed, and how many it used when done.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum

from edged.egress.wishes import Credentials, Target, target_of
from edged.errors import BadRequest
from edged.identity.words import JobId

VERSION = 5
USE_NO_LOGIN = b"\x05\x00"
USE_PASSWORD = b"\x05\x02"
NO_METHOD = b"\x05\xff"
LOGIN_ACCEPTED = b"\x01\x00"
LOGIN_REFUSED = b"\x01\x01"
NO_LOGIN, PASSWORD = 0, 2
CONNECT = 1


class Reply(IntEnum):
    """RFC 1928 §6."""

    SUCCEEDED = 0
    FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    EXPIRED = 6
    COMMAND_UNSUPPORTED = 7
    ADDRESS_UNSUPPORTED = 8


@dataclass(frozen=True, slots=True)
class Request:
    """``target`` is None for a command or address type we do not serve; ``reply`` then says which."""

    target: Target | None
    reply: Reply = Reply.SUCCEEDED


def parse_greeting(data: bytes | bytearray) -> tuple[frozenset[int], int] | None:
    """The methods offered. Raises BadRequest."""
    if len(data) < 2:
        return None
    if data[0] != VERSION or data[1] == 0:
        raise BadRequest("not a SOCKS5 greeting")
    used = 2 + data[1]
    return (frozenset(data[2:used]), used) if len(data) >= used else None


def choose(methods: frozenset[int]) -> bytes:
    """User and password when offered: a job that brings its token should be known by it."""
    if PASSWORD in methods:
        return USE_PASSWORD
    return USE_NO_LOGIN if NO_LOGIN in methods else NO_METHOD


def parse_login(data: bytes | bytearray) -> tuple[Credentials | None, int] | None:
    """Credentials; None in their place when the user name is empty. Raises BadRequest."""
    if len(data) < 2:
        return None
    if data[0] != 1:
        raise BadRequest("not a user/password message")
    password_at = 3 + data[1]
    if len(data) < password_at:
        return None
    used = password_at + data[password_at - 1]
    if len(data) < used:
        return None
    try:
        user = bytes(data[2 : password_at - 1]).decode()
        password = bytes(data[password_at:used]).decode()
    except UnicodeDecodeError:
        raise BadRequest("user or password is not UTF-8") from None
    return (Credentials(JobId(user), password) if user else None), used


def parse_request(data: bytes | bytearray) -> tuple[Request, int] | None:
    """Command and target. Raises BadRequest for bytes that are none."""
    if len(data) < 5:
        return None
    if data[0] != VERSION or data[2] != 0:
        raise BadRequest("not a SOCKS5 request")
    kind = data[3]
    length = {1: 4, 4: 16, 3: 1 + data[4]}.get(kind)
    if length is None:
        return Request(None, Reply.ADDRESS_UNSUPPORTED), len(data)
    used = 4 + length + 2
    if len(data) < used:
        return None
    if data[1] != CONNECT:  # BIND and UDP ASSOCIATE
        return Request(None, Reply.COMMAND_UNSUPPORTED), used
    raw, port = bytes(data[4 : 4 + length]), int.from_bytes(data[used - 2 : used], "big")
    host = raw[1:].decode("ascii", "replace") if kind == 3 else str(ipaddress.ip_address(raw))
    return Request(target_of(host, port)), used


def reply(code: Reply, bound: tuple[str, int] | None = None) -> bytes:
    """The answer to a request, with the address we connected from."""
    host, port = bound or ("0.0.0.0", 0)  # noqa: S104 - the 'no address' of RFC 1928
    address = ipaddress.ip_address(host.partition("%")[0])
    kind = b"\x01" if address.version == 4 else b"\x04"
    return bytes((VERSION, code, 0)) + kind + address.packed + port.to_bytes(2, "big")
