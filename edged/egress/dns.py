"""DNS messages (RFC 1035, RFC 3596): one question out, checked addresses and their life in. Pure."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum

from edged.egress.addresses import Address
from edged.errors import BadRequest

MAX_UDP = 1232  # DNS flag day 2020: fits every path without fragments
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_IN = 1
_MAX_POINTERS = 64
_MAX_CHAIN = 16


class Type(IntEnum):
    """The record types we ask for or follow."""

    A = 1
    CNAME = 5
    SOA = 6
    AAAA = 28
    OPT = 41


@dataclass(frozen=True, slots=True)
class Answer:
    """Addresses of one family. ``ttl`` in seconds; not ``exists``: NXDOMAIN; ``truncated``: ask by TCP."""

    addresses: tuple[Address, ...]
    ttl: int
    exists: bool = True
    truncated: bool = False


def query(number: int, name: str, kind: Type) -> bytes:
    """One recursive question with EDNS(0) (RFC 6891)."""
    labels = b"".join(bytes((len(label),)) + label.encode("ascii") for label in name.split("."))
    question = labels + b"\0" + struct.pack("!HH", kind, _IN)
    edns = b"\0" + struct.pack("!HHIH", Type.OPT, MAX_UDP, 0, 0)
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 1) + question + edns


def parse(message: bytes, number: int, name: str, kind: Type) -> Answer:
    """The answer to exactly that question. Raises BadRequest for any other message, or a server's failure.

    Only records that hang on ``name`` by its CNAME chain count: what else a server adds is ignored.
    """
    try:
        return _parse(message, number, name, kind)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise BadRequest("malformed DNS message") from None


def _parse(message: bytes, number: int, name: str, kind: Type) -> Answer:
    got, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if got != number or not flags & 0x8000 or questions != 1:
        raise BadRequest("not the answer to this question")
    asked, at = _name(message, _HEADER.size)
    asked_kind, asked_class = struct.unpack_from("!HH", message, at)
    if asked != name or asked_kind != kind or asked_class != _IN:
        raise BadRequest("not the answer to this question")
    if flags & 0x0200:
        return Answer((), 0, truncated=True)
    code = flags & 0xF
    if code not in (0, 3):
        raise BadRequest(f"the DNS server answered with error {code}")
    records = _records(message, at + 4, answers)
    owner, ttl = _follow(records, name)
    found = [(data, life) for who, what, life, data in records if who == owner and what == kind]
    make = ipaddress.IPv4Address if kind is Type.A else ipaddress.IPv6Address
    lives = [life for _, life in found] + ([ttl] if ttl is not None else [])
    return Answer(tuple(make(data) for data, _ in found), min(lives, default=0), exists=code == 0)


_Record = tuple[str, int, int, bytes]


def _records(message: bytes, at: int, count: int) -> list[_Record]:
    """Owner, type, TTL, data; a CNAME's data is its target as text."""
    records: list[_Record] = []
    for _ in range(count):
        owner, at = _name(message, at)
        what, klass, ttl, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        data = message[at : at + length]
        wanted = {Type.A: 4, Type.AAAA: 16}.get(what, length)
        if len(data) != length or length != wanted:
            raise BadRequest("malformed DNS record")
        if what == Type.CNAME:
            data = _name(message, at)[0].encode()
        if klass == _IN:
            records.append((owner, what, 0 if ttl & 0x80000000 else ttl, data))  # RFC 2181 §8
        at += length
    return records


def _follow(records: list[_Record], name: str) -> tuple[str, int | None]:
    """The end of the CNAME chain that starts at ``name``, and the shortest life on the way."""
    aliases = {owner: (data.decode(), ttl) for owner, what, ttl, data in records if what == Type.CNAME}
    shortest: int | None = None
    for _ in range(_MAX_CHAIN):
        if name not in aliases:
            break
        name, ttl = aliases[name]
        shortest = ttl if shortest is None else min(shortest, ttl)
    return name, shortest


def _name(message: bytes, at: int) -> tuple[str, int]:
    """A name and the offset after it; pointers may only lead backwards a bounded number of times."""
    labels: list[str] = []
    after = -1
    for _ in range(_MAX_POINTERS + 128):
        length = message[at]
        if length & 0xC0 == 0xC0:
            after = at + 2 if after < 0 else after
            at = struct.unpack_from("!H", message, at)[0] & 0x3FFF
        elif length & 0xC0:
            raise BadRequest("malformed DNS name")
        elif length == 0:
            return ".".join(labels).lower(), at + 1 if after < 0 else after
        else:
            labels.append(message[at + 1 : at + 1 + length].decode("ascii"))
            at += 1 + length
    raise BadRequest("DNS name without an end")
