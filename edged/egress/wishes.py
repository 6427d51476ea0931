"""What a client asks of the gate, whichever protocol it spoke."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from edged.egress.addresses import Address, canonical
from edged.errors import BadRequest
from edged.identity.words import JobId

_NAME = re.compile(r"(?=.{1,253}$)(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)")
# WHATWG URL §3.5: a last label like these makes the whole an IPv4 number to some resolvers
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Credentials:
    """User and password: a job id and the token the job was given."""

    job: JobId
    token: str


@dataclass(frozen=True, slots=True)
class Target:
    """A name or an address, and a port. Exactly one of ``host`` and ``address`` is set."""

    host: str
    address: Address | None
    port: int

    def __str__(self) -> str:
        if self.address is None:
            return f"{self.host}:{self.port}"
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@lru_cache(maxsize=4096)
def target_of(host: str, port: int) -> Target:
    """``host`` as a client wrote it, brackets already off. Raises BadRequest.

    Only full dotted quads and RFC 4291 text count as addresses; ``127.1``, ``0x7f000001`` and
    ``2130706433``, which getaddrinfo would take, are refused outright.
    """
    if not 0 < port <= 65535:
        raise BadRequest("not a port")
    try:
        return Target("", canonical(ipaddress.ip_address(host)), port)
    except ValueError:
        pass
    name = host.lower().removesuffix(".")
    if _NAME.fullmatch(name) is None or _NUMBER.fullmatch(name.rpartition(".")[2]) is not None:
        raise BadRequest("neither a host name nor an address")
    return Target(name, None, port)


def target_of_authority(authority: str, default_port: int | None = None) -> Target:
    """``host:port`` or ``[v6]:port`` (RFC 3986 §3.2). Raises BadRequest."""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or ":" not in host:
            raise BadRequest("not host:port")
    else:
        host, colon, after = authority.partition(":")
        rest = colon + after
    if rest in ("", ":") and default_port is not None:
        return target_of(host, default_port)
    if not rest.startswith(":") or not rest[1:].isascii() or not rest[1:].isdigit() or len(rest) > 6:
        raise BadRequest("not host:port")
    return target_of(host, int(rest[1:]))
