"""Reading the XML bodies of WebDAV requests: no DTD, no entities, bounded depth. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple
from xml.sax.saxutils import quoteattr

import defusedxml.ElementTree as SafeTree
from defusedxml import DefusedXmlException

from edged.errors import BadRequest

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

DAV = "DAV:"
MAX_DEPTH = 32
MAX_NAMES = 500
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


class Name(NamedTuple):
    """A property: namespace (empty: none) and local name."""

    space: str
    local: str


@dataclass(frozen=True, slots=True)
class Propfind:
    """What a PROPFIND asks for. ``names`` for *prop*, and what *allprop* includes besides."""

    kind: Literal["allprop", "propname", "prop"]
    names: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One property to set (``xml`` is its element) or to remove (``xml`` is None), in document order."""

    name: Name
    xml: str | None


@dataclass(frozen=True, slots=True)
class LockRequest:
    """``owner`` is the content of the owner element, kept as the client wrote it."""

    exclusive: bool
    owner: str


def parse_propfind(body: bytes) -> Propfind:
    """An empty body means allprop (RFC 4918 §9.1). Raises BadRequest."""
    if not body.strip():
        return Propfind("allprop")
    root = _root(body, "propfind")
    asked: list[Propfind] = []
    included: tuple[Name, ...] = ()
    for child in root:
        name = _name(child)
        if name == (DAV, "allprop"):
            asked.append(Propfind("allprop"))
        elif name == (DAV, "propname"):
            asked.append(Propfind("propname"))
        elif name == (DAV, "prop"):
            asked.append(Propfind("prop", _names(child)))
        elif name == (DAV, "include"):
            included = _names(child)
    if len(asked) != 1:
        raise BadRequest("propfind needs exactly one of allprop, propname, prop")
    return Propfind("allprop", included) if asked[0].kind == "allprop" else asked[0]


def parse_proppatch(body: bytes) -> list[Change]:
    """The changes of a propertyupdate. Raises BadRequest."""
    root = _root(body, "propertyupdate")
    changes: list[Change] = []
    for action in root:
        name = _name(action)
        if name not in ((DAV, "set"), (DAV, "remove")):
            continue
        for prop in action:
            if _name(prop) != (DAV, "prop"):
                continue
            language = prop.get(_LANG) or action.get(_LANG) or root.get(_LANG)
            for element in prop:
                xml = _serialised(element, language) if name.local == "set" else None
                changes.append(Change(_name(element), xml))
    if not changes or len(changes) > MAX_NAMES:
        raise BadRequest("propertyupdate names no property, or too many")
    return changes


def parse_lockinfo(body: bytes) -> LockRequest:
    """A lockinfo. Raises BadRequest."""
    root = _root(body, "lockinfo")
    found = {_name(child): child for child in root}
    scope, kind = found.get(Name(DAV, "lockscope")), found.get(Name(DAV, "locktype"))
    if scope is None or kind is None or [_name(e) for e in kind] != [(DAV, "write")]:
        raise BadRequest("lockinfo needs a lockscope and the locktype write")
    scopes = [_name(element) for element in scope]
    if scopes not in ([(DAV, "exclusive")], [(DAV, "shared")]):
        raise BadRequest("lockscope is either exclusive or shared")
    owner = found.get(Name(DAV, "owner"))
    return LockRequest(scopes == [(DAV, "exclusive")], _inner(owner) if owner is not None else "")


def empty_element(name: Name) -> str:
    """The property as an empty element, in its own namespace."""
    if name.space == DAV:
        return f"<D:{name.local}/>"
    if not name.space:
        return f'<{name.local} xmlns=""/>'
    return f"<x:{name.local} xmlns:x={quoteattr(name.space)}/>"


def _root(body: bytes, local: str) -> Element:
    try:
        root: Element = SafeTree.fromstring(body, forbid_dtd=True)
    except (SafeTree.ParseError, DefusedXmlException, ValueError, LookupError):
        raise BadRequest("body is not acceptable XML (DTDs and entities are refused)") from None
    _check_depth(root)
    if _name(root) != (DAV, local):
        raise BadRequest(f"body is not a {{DAV:}}{local}")
    return root


def _check_depth(root: Element) -> None:
    level = [root]
    for _ in range(MAX_DEPTH):
        level = [child for element in level for child in element]
        if not level:
            return
    raise BadRequest("XML nested too deeply")


def _name(element: Element) -> Name:
    tag = element.tag
    if not tag.startswith("{"):
        return Name("", tag)
    space, _, local = tag[1:].partition("}")
    return Name(space, local)


def _names(element: Element) -> tuple[Name, ...]:
    names = tuple(dict.fromkeys(_name(child) for child in element))
    if len(names) > MAX_NAMES:
        raise BadRequest("too many properties asked for")
    return names


def _serialised(element: Element, language: str | None) -> str:
    if language and element.get(_LANG) is None:
        element.set(_LANG, language)
    element.tail = None
    text: str = SafeTree.tostring(element, encoding="unicode")
    return text


def _inner(element: Element) -> str:
    from xml.sax.saxutils import escape

    parts = [escape(element.text or "")]
    for child in element:
        tail = escape(child.tail or "")
        parts.append(_serialised(child, None) + tail)
    return "".join(parts)
