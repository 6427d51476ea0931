"""JSON, XML and HTML of the same values: mappings, lists and strings.

A mapping's list becomes repeated elements in XML and is always a list in JSON, single or not: DIRAC reads
``["file"]`` as a list, and clients of 1.0 that allow for an object take a list as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from html import escape
from typing import Any
from xml.sax.saxutils import escape as xml_escape

import msgspec
from aiohttp import web

from edged.errors import EdgeError, TooLarge, Unauthenticated
from edged.http.problems import headers_of, status_of

_encode = msgspec.json.Encoder().encode
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_REASON = re.compile(r"[^\x20-\x7e]+")


class Format(Enum):
    """How an answer is written."""

    JSON = "application/json"
    XML = "application/xml"
    HTML = "text/html"


def wanted(accept: str) -> Format:
    """By the Accept header: JSON, XML, HTML for browsers; JSON for whoever does not say."""
    if "json" in accept:
        return Format.JSON
    if "text/html" in accept:
        return Format.HTML
    return Format.XML if "xml" in accept else Format.JSON


def write(value: Mapping[str, Any], root: str, form: Format) -> bytes:
    """The document; ``root`` is the outermost element, which JSON does not have."""
    if form is Format.XML:
        return f'<?xml version="1.0" encoding="UTF-8"?>{element(root, value)}'.encode()
    if form is Format.JSON:
        return _encode(value)
    text = escape(msgspec.json.format(_encode(value)).decode())
    head = f"<!DOCTYPE html><html><head><title>{escape(root)}</title></head>"
    return f"{head}<body><pre>{text}</pre></body></html>".encode()


def element(name: str, value: Any) -> str:
    """One element, or one for each item of a list."""
    if isinstance(value, list | tuple):
        return "".join([element(name, item) for item in value])
    if isinstance(value, Mapping):
        inner = "".join([element(key, item) for key, item in value.items()])
        return f"<{name}>{inner}</{name}>"
    return f"<{name}>{text(str(value))}</{name}>"


def text(content: str) -> str:
    """Content of an XML element; what XML cannot hold becomes ``?``."""
    return xml_escape(_NOT_XML.sub("?", content))


def answer(
    value: Mapping[str, Any],
    root: str,
    form: Format,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """A response with the document."""
    return ready(write(value, root, form), form, status, headers)


def ready(
    body: bytes, form: Format, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A response with a document already written."""
    return web.Response(body=body, status=status, content_type=form.value, charset="utf-8", headers=headers)


def refusal(error: EdgeError, form: Format, status: int = 0) -> web.Response:
    """An error as ARC's clients show it.

    DIRAC and arc* show the reason phrase, HTCondor the ``message`` at the second level of JSON.
    """
    status = status or _status(error)
    reason = _NOT_REASON.sub(" ", error.message)[:200].strip() or "Error"
    body = write({"error": {"code": error.code, "message": error.message}}, "errors", form)
    headers = headers_of(error) if not isinstance(error, Unauthenticated) else {}
    return web.Response(
        body=body, status=status, reason=reason, content_type=form.value, charset="utf-8", headers=headers
    )


def _status(error: EdgeError) -> int:
    """Who is not known gets 403, as A-REX says it."""
    if isinstance(error, Unauthenticated):
        return 403
    return 413 if isinstance(error, TooLarge) else status_of(error)
