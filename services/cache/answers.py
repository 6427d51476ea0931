"""What goes back to a client: heads, bodies, and how faults are said so that fail-over works.

Measured with the CVMFS client 2.12: 502, 504 and 404 make it try another stratum, a closed connection or
403 another proxy. So an upstream's fault is a 5xx, and our own fault is a closed connection.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus

from edged.errors import BadRequest, Denied, EdgeError, NotFound, Upstream, UpstreamTimeout
from services.cache.files import OpenFile
from services.cache.fill import Fill
from services.cache.residents import Resident
from services.cache.traffic import Outcome, Traffic

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
COMMON = b"Server: edged\r\nVia: 1.1 edged\r\n"
OBJECT = (
    COMMON
    + b"Content-Type: application/octet-stream\r\nCache-Control: max-age=259200\r\nAccept-Ranges: bytes\r\n"
)


@dataclass(slots=True)
class Answer:
    """An answer to send. ``fields`` are header lines; one of ``body``, ``file``, ``fill`` is the content.

    ``born`` (Unix seconds) is when the content was last known to be right, for Age.
    """

    fields: bytes
    outcome: Outcome
    traffic: Traffic | None = None
    status: int = 200
    body: bytes | None = None
    file: OpenFile | None = None
    fill: Fill | None = None
    born: float | None = None
    resident: Resident | None = None

    @classmethod
    def of(cls, resident: Resident, fields: bytes, outcome: Outcome, traffic: Traffic) -> Answer:
        """From what is hot."""
        return cls(
            fields,
            outcome,
            traffic,
            body=resident.body,
            file=resident.file,
            born=resident.born,
            resident=resident,
        )

    @property
    def size(self) -> int | None:
        """Bytes of content, None while a fill does not know."""
        if self.body is not None:
            return len(self.body)
        if self.file is not None:
            return self.file.size
        return self.fill.size if self.fill is not None else 0


def status_line(status: int) -> bytes:
    """``HTTP/1.1 200 OK`` with its line end."""
    return b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"Answer"))


def resident_head(fields: bytes, size: int, status: int = 200) -> bytes:
    """The constant part of a hot answer's head; the age and an empty line follow."""
    return status_line(status) + fields + b"Content-Length: %d\r\nAge: " % size


def head(answer: Answer, length: int | None, *, keep_alive: bool, old: bool) -> bytes:
    """The whole head. ``length`` None: no Content-Length (304). ``old``: the client speaks HTTP/1.0."""
    parts = [status_line(answer.status), answer.fields]
    if length is not None:
        parts.append(b"Content-Length: %d\r\n" % length)
    if not keep_alive:
        parts.append(b"Connection: close\r\n")
    elif old:
        parts.append(b"Connection: keep-alive\r\n")
    if answer.born is not None:
        parts.append(b"Age: %d\r\n" % max(0, time.time() - answer.born))
    parts.append(b"\r\n")
    return b"".join(parts)


def plain(status: int, text: str, outcome: Outcome, traffic: Traffic | None = None) -> Answer:
    """A short answer for people."""
    allow = b"Allow: GET, HEAD\r\n" if status == 405 else b""
    fields = COMMON + allow + b"Content-Type: text/plain\r\nCache-Control: no-store\r\n"
    return Answer(fields, outcome, traffic, status=status, body=text.encode() + b"\n")


def fault(error: EdgeError, traffic: Traffic | None) -> Answer | None:
    """The answer to a fault, or None: close the connection, so that the client takes its next proxy."""
    match error:
        case NotFound():
            return plain(404, error.message, Outcome.FAILED, traffic)
        case UpstreamTimeout():
            return plain(504, error.message, Outcome.FAILED, traffic)
        case Upstream():
            return plain(502, error.message, Outcome.FAILED, traffic)
        case Denied():
            return plain(403, error.message, Outcome.REFUSED, traffic)
        case BadRequest():
            return plain(400, error.message, Outcome.REFUSED, traffic)
        case _:
            return None
