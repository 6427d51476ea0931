"""From the bytes of a submission to descriptions for the engine: the language is told by the first byte.

Content types are not looked at: clients send ``application/json``, ``applicaton/rsl`` or none with either.
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.config.doors import Arc
from edged.config.jobs import Software
from edged.errors import BadRequest, EdgeError
from services.jobs.doors.arc import from_adl, from_xrsl
from services.jobs.doors.arc.wish import Wish, description
from services.jobs.model import Description


def read(body: bytes) -> list[tuple[Wish | EdgeError, str]]:
    """Each job's wish, or what is wrong with it, and its text. Raises BadRequest for the text as a whole."""
    start = body.lstrip()[:1]
    if start == b"<":
        return from_adl.wishes(body.strip())
    if start in (b"&", b"+", b"(", b"|"):
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise BadRequest("xRSL: not UTF-8") from None
        found = from_xrsl.wishes(text)
        return [(wish, text if len(found) == 1 else "") for wish in found]
    raise BadRequest("neither xRSL nor ADL: begin with & or <" if start else "no job description was sent")


def descriptions(
    body: bytes, arc: Arc, software: Sequence[Software], *, queue: str = "", delegation: str = ""
) -> list[Description | EdgeError]:
    """What to ask the engine for. ``queue`` and ``delegation`` serve jobs that name none themselves."""
    found: list[Description | EdgeError] = []
    for wish, text in read(body):
        if isinstance(wish, EdgeError):
            found.append(wish)
            continue
        wish.queue = wish.queue or queue
        wish.delegation = wish.delegation or delegation
        try:
            found.append(description(wish, text, arc, software))
        except EdgeError as error:
            found.append(error)
    return found
