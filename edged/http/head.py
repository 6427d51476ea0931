"""The head of a request, read strictly: either it is plain, or it is not ours to judge. Pure.

RFC 9112 §2 to §6. None means that something more tolerant, or more thorough, must see these very bytes: every
spelling that two readers could understand differently is such a case. What is read here can be read in
one way only: its lines end in CRLF, its fields are ASCII, and one field at most says how long its body is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REQUEST_LINE = 8190
FIELDS = 128
END = b"\r\n\r\n"
_LINE = re.compile(r"([A-Z]{1,20}) (/[!\"$-~]*) HTTP/1\.([01])")  # origin-form, no fragment
_FIELDS = re.compile(r"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e]*\r\n)*")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,17}")
_ONCE = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "te"})
_OTHERS = frozenset({"upgrade", "trailer", "http2-settings", "proxy-connection"})
_OPTIONS = {
    "keep-alive": True,
    "close": False,
    "": None,
    "te": None,
    "te, keep-alive": True,
    "te, close": False,
}


@dataclass(frozen=True, slots=True)
class Head:
    """A request line and its fields, names as they were written. ``length`` None: no Content-Length."""

    method: str
    target: str
    minor: int
    fields: tuple[tuple[str, str], ...]
    length: int | None
    chunked: bool
    keep_alive: bool

    @property
    def bodiless(self) -> bool:
        """Whether the next request follows at once."""
        return not self.length and not self.chunked


def parse(data: bytes | bytearray) -> Head | None:
    """A whole head, with the empty line at its end."""
    if not data.isascii():
        return None
    line, _, rest = data.decode("ascii").partition("\r\n")
    start = _LINE.fullmatch(line) if len(line) <= REQUEST_LINE else None
    block = rest[:-2]
    if start is None or not rest.endswith("\r\n") or _FIELDS.fullmatch(block) is None:
        return None
    fields, framing = [], dict[str, str]()
    for field in block.split("\r\n")[:-1]:
        name, _, value = field.partition(":")
        value = value.strip(" \t")
        fields.append((name, value))
        lower = name.lower()
        if lower in _ONCE:
            if lower in framing:
                return None
            framing[lower] = value
        elif lower in _OTHERS:
            return None
    if len(fields) > FIELDS:
        return None
    return _framed(start[1], start[2], int(start[3]), tuple(fields), framing)


def _framed(
    method: str, target: str, minor: int, fields: tuple[tuple[str, str], ...], framing: dict[str, str]
) -> Head | None:
    """With the fields that say where the request ends, and whether another may follow."""
    chunked = "transfer-encoding" in framing
    length = framing.get("content-length")
    wanted = _OPTIONS.get(framing.get("connection", "").lower(), "other")
    if wanted == "other" or not framing.get("host"):
        return None
    if chunked and (length is not None or minor == 0 or framing["transfer-encoding"].lower() != "chunked"):
        return None
    if length is not None and _LENGTH.fullmatch(length) is None:
        return None
    if "expect" in framing and (minor == 0 or framing["expect"].lower() != "100-continue"):
        return None
    keep_alive = minor == 1 if wanted is None else bool(wanted)
    return Head(method, target, minor, fields, None if length is None else int(length), chunked, keep_alive)
