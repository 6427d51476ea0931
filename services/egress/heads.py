"""The head of an HTTP request or answer, parsed strictly (RFC 9112).

Only what has one meaning is accepted, so that nobody behind us can read a head otherwise than we
did: CRLF line ends, no folding, no space before a colon, no control bytes, one Host, never both
Content-Length and Transfer-Encoding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edged.errors import BadRequest, TooLarge

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_REQUEST = re.compile(rb"([A-Z][A-Z-]{0,31}) ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?")
MAX_FIELDS = 200

Fields = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Head:
    """A request head. Field names are lower case, values stripped."""

    method: str
    target: str
    minor: int
    fields: Fields

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a field, in order."""
        return [value for key, value in self.fields if key == name]


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """An answer's head; ``line`` is the status line as it came."""

    line: bytes
    status: int
    fields: Fields


def end_of(data: bytes | bytearray, limit: int) -> int:
    """Offset just after the empty line, or -1 while it is incomplete. Raises TooLarge above ``limit``."""
    end = data.find(b"\r\n\r\n", 0, limit)
    if end >= 0:
        return end + 4
    if len(data) >= limit:
        raise TooLarge(f"request head is over {limit} bytes")
    return -1


def parse_request(data: bytes) -> Head:
    """The head up to and with its empty line. Raises BadRequest."""
    lines = data[:-4].split(b"\r\n")
    match = _REQUEST.fullmatch(lines[0])
    if match is None:
        raise BadRequest("not an HTTP/1 request line")
    head = Head(match[1].decode(), match[2].decode(), int(match[3]), parse_fields(lines[1:]))
    hosts = head.all(b"host")
    if len(hosts) > 1 or (head.minor == 1 and not hosts):
        raise BadRequest("exactly one Host is needed")  # RFC 9112 §3.2
    return head


def parse_answer(data: bytes) -> AnswerHead:
    """An origin's head up to and with its empty line. Raises BadRequest."""
    lines = data[:-4].split(b"\r\n")
    match = _STATUS.fullmatch(lines[0])
    if match is None:
        raise BadRequest("not an HTTP/1 status line")
    return AnswerHead(lines[0], int(match[2]), parse_fields(lines[1:]))


def parse_fields(lines: list[bytes]) -> Fields:
    """Header lines without their CRLF. Raises BadRequest."""
    if len(lines) > MAX_FIELDS:
        raise TooLarge(f"more than {MAX_FIELDS} header fields")
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or _TOKEN.fullmatch(name) is None or _BAD.search(value) is not None:
            raise BadRequest("a header field is malformed")
        fields.append((name.lower(), value.strip(b" \t")))
    return tuple(fields)


def body_length(head: Head) -> int:
    """Bytes of body that follow. Raises BadRequest for chunked or ambiguous framing (RFC 9112 §6.3)."""
    lengths = head.all(b"content-length")
    if head.all(b"transfer-encoding"):
        raise BadRequest("send the body with Content-Length; chunked requests are not forwarded")
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise BadRequest("Content-Length must be one number")
    return int(lengths[0])
