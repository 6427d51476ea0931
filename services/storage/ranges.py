"""Range requests (RFC 9110 §14): which bytes are wanted, and how several are framed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_RANGES = 1024  # davix and ROOT ask for some hundreds at once; XRootD's own limit is 1024
_SPEC = re.compile(r"[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII)


class Span(NamedTuple):
    """Bytes ``start`` to ``stop``, ``stop`` not included."""

    start: int
    stop: int


class Unsatisfiable(Exception):
    """No byte of the wanted ranges exists: 416."""


def parse(header: str, size: int) -> list[Span] | None:
    """The spans of a file of ``size`` bytes that ``header`` asks for; None when it must be ignored.

    Ignored (§14.2): other units, malformed sets, more than MAX_RANGES, and sets that together ask for
    more than the file itself twice over (an amplification no honest vector read makes).
    Raises Unsatisfiable.
    """
    unit, equals, rest = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    spans: list[Span] = []
    specs = [spec for spec in rest.split(",") if spec.strip()]
    if not specs or len(specs) > MAX_RANGES:
        return None
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None or len(spec) > 40:
            return None
        first, last = match.groups()
        if not first and not last:
            return None
        if not first:  # suffix: the last N bytes
            length = min(int(last), size)
            if length:
                spans.append(Span(size - length, size))
            continue
        start, stop = int(first), int(last) + 1 if last else size
        if last and stop <= start:
            return None
        if start < size:
            spans.append(Span(start, min(stop, size)))
    if not spans:
        raise Unsatisfiable
    if len(spans) > 1 and sum(span.stop - span.start for span in spans) > 2 * size:
        return None
    return spans


@dataclass(frozen=True, slots=True)
class Multipart:
    """A multipart/byteranges body (RFC 9110 §14.6): alternating text and spans of the file."""

    boundary: str
    size: int
    spans: Sequence[Span]
    media: str = "application/octet-stream"

    @property
    def content_type(self) -> str:
        """Value of the answer's Content-Type."""
        return f"multipart/byteranges; boundary={self.boundary}"

    def pieces(self) -> Iterator[tuple[bytes, Span | None]]:
        """What to send in order: a head, then the span it announces; the closing line has no span."""
        lead = ""
        for span in self.spans:
            head = (
                f"{lead}--{self.boundary}\r\nContent-Type: {self.media}\r\n"
                f"Content-Range: bytes {span.start}-{span.stop - 1}/{self.size}\r\n\r\n"
            )
            yield head.encode(), span
            lead = "\r\n"
        yield f"\r\n--{self.boundary}--\r\n".encode(), None

    def length(self) -> int:
        """Content-Length of the whole body."""
        return sum(len(head) + (span.stop - span.start if span else 0) for head, span in self.pieces())
