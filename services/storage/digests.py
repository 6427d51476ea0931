"""Digests of file contents: algorithms, and the header forms of RFC 3230, RFC 9530 and Content-MD5.

Values are raw bytes everywhere inside; the header forms differ only at the edge.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import google_crc32c
from isal import isal_zlib

from edged.errors import BadRequest

ADLER32, CRC32C, MD5, SHA1, SHA256, SHA512 = "adler32", "crc32c", "md5", "sha", "sha-256", "sha-512"
KNOWN = (ADLER32, MD5, CRC32C, SHA256, SHA512, SHA1)
HEX = frozenset({ADLER32, CRC32C})  # written as 8 hex digits in RFC 3230 headers, the rest as base64
LENGTH = {ADLER32: 4, CRC32C: 4, MD5: 16, SHA1: 20, SHA256: 32, SHA512: 64}
REPR_NAME = {
    ADLER32: "adler",
    CRC32C: "crc32c",
    MD5: "md5",
    SHA1: "sha",
    SHA256: "sha-256",
    SHA512: "sha-512",
}
FROM_REPR = {name: algorithm for algorithm, name in REPR_NAME.items()}

Digests = Mapping[str, bytes]


class Running(Protocol):
    """A digest in progress."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class _Adler32:
    """adler32 by isa-l: .07 s/GiB here, zlib's own takes .41."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self.value = isal_zlib.adler32(data, self.value)

    def digest(self) -> bytes:
        return self.value.to_bytes(4, "big")


class _Crc32c:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self.value = google_crc32c.extend(self.value, bytes(data))

    def digest(self) -> bytes:
        return self.value.to_bytes(4, "big")


def running(algorithm: str) -> Running:
    """A fresh digest. ``algorithm`` is one of KNOWN."""
    if algorithm == ADLER32:
        return _Adler32()
    if algorithm == CRC32C:
        return _Crc32c()
    name = {MD5: "md5", SHA1: "sha1", SHA256: "sha256", SHA512: "sha512"}[algorithm]
    return hashlib.new(name, usedforsecurity=False)


class Several:
    """Several digests over the same bytes."""

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._running = {algorithm: running(algorithm) for algorithm in dict.fromkeys(algorithms)}

    @property
    def slow(self) -> bool:
        """Whether anything but adler32 is computed: then it belongs into a thread."""
        return len(self._running) > 1

    def update(self, data: bytes | bytearray | memoryview) -> None:
        for digest in self._running.values():
            digest.update(data)

    def results(self) -> dict[str, bytes]:
        return {algorithm: digest.digest() for algorithm, digest in self._running.items()}


def combine_adler32(first: bytes, second: bytes, second_length: int) -> bytes:
    """adler32 of two parts in sequence, from those of the parts (zlib's adler32_combine)."""
    base = 65521
    one, two = int.from_bytes(first, "big"), int.from_bytes(second, "big")
    rem = second_length % base
    low = ((one & 0xFFFF) + (two & 0xFFFF) + base - 1) % base
    high = (rem * (one & 0xFFFF) + (one >> 16) + (two >> 16) + base - rem) % base
    return (high << 16 | low).to_bytes(4, "big")


def text(algorithm: str, value: bytes) -> str:
    """The RFC 3230 form of a value: ``091e01de`` for adler32, base64 for md5."""
    return value.hex() if algorithm in HEX else base64.b64encode(value).decode()


def wanted(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The best known algorithm of Want-Digest and of Want-Repr-Digest; None where not asked."""
    old, new = headers.get("Want-Digest"), headers.get("Want-Repr-Digest")
    return (_best_old(old) if old is not None else None, _best_new(new) if new is not None else None)


def _best_old(header: str) -> str | None:
    """``adler32;q=1, md5;q=0.5`` (RFC 3230 §4.3.1); names are case-insensitive, q=0 forbids."""
    best, best_q = None, 0.0
    for item in header.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        name = {"sha-1": SHA1, "adler": ADLER32}.get(name, name)
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                quality = _number(parameter[2:])
        if name in KNOWN and quality > best_q:
            best, best_q = name, quality
    return best


def _best_new(header: str) -> str | None:
    """``sha-256=10, md5=3`` (RFC 9530 §4); 0 means not acceptable."""
    best, best_weight = None, 0.0
    for item in header.split(","):
        name, _, weight = (part.strip().lower() for part in item.partition("="))
        algorithm, value = FROM_REPR.get(name), _number(weight or "1")
        if algorithm is not None and value > best_weight:
            best, best_weight = algorithm, value
    return best


def _number(value: str) -> float:
    try:
        return min(max(float(value), 0.0), 10.0)
    except ValueError:
        return 0.0


def answer_headers(old: str | None, new: str | None, values: Digests) -> dict[str, str]:
    """``Digest`` and ``Repr-Digest`` for those asked and known."""
    headers = {}
    if old is not None and old in values:
        headers["Digest"] = f"{old}={text(old, values[old])}"
    if new is not None and new in values:
        headers["Repr-Digest"] = f"{REPR_NAME[new]}=:{base64.b64encode(values[new]).decode()}:"
    return headers


def announced(headers: Mapping[str, str]) -> dict[str, bytes]:
    """What the sender says of its body: Digest, Repr-Digest, Content-Digest, Content-MD5.

    Unknown algorithms are passed over. Raises BadRequest when a known one is malformed or two differ.
    """
    found: dict[str, bytes] = {}
    for item in headers.get("Digest", "").split(","):
        name, equals, value = item.strip().partition("=")
        if equals:
            _note(found, {"sha-1": SHA1}.get(name.lower(), name.lower()), value)
    for field in ("Repr-Digest", "Content-Digest"):
        for item in headers.get(field, "").split(","):
            name, equals, value = item.strip().partition("=")
            if equals and name.lower() in FROM_REPR:
                _note(found, FROM_REPR[name.lower()], value.strip().strip(":"), encoded=True)
    if "Content-MD5" in headers:
        _note(found, MD5, headers["Content-MD5"], encoded=True)
    return found


def _note(found: dict[str, bytes], algorithm: str, value: str, *, encoded: bool = False) -> None:
    if algorithm not in KNOWN:
        return
    raw = decode(algorithm, value.strip(), encoded=encoded)
    if found.setdefault(algorithm, raw) != raw:
        raise BadRequest(f"two different {algorithm} digests in one request")


def decode(algorithm: str, value: str, *, encoded: bool = False) -> bytes:
    """Raw bytes of a header value. Senders write adler32 with or without leading zeros, in any case."""
    try:
        if algorithm in HEX and not encoded and value:
            raw = bytes.fromhex(value.strip('"').rjust(8, "0"))
        else:
            raw = base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raise BadRequest(f"malformed {algorithm} digest") from None
    if len(raw) != LENGTH[algorithm]:
        raise BadRequest(f"malformed {algorithm} digest")
    return raw
