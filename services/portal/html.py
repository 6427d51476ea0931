"""HTML as nested calls. Everything is escaped except what these functions made."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

DASH = "\N{EN DASH}"  # in a cell with nothing to say
_VOID = frozenset({"meta", "link", "input", "br"})


class Safe(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def tag(element: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Safe:
    """One element. ``class_`` is class, ``aria_label`` is aria-label; None and False leave it out."""
    words = "".join(_attribute(key, value) for key, value in attributes.items())
    if element in _VOID:
        return Safe(f"<{element}{words}>")
    return Safe(f"<{element}{words}>{_inner(children)}</{element}>")


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def _inner(children: Iterable[Child]) -> str:
    return "".join(_text(child) for child in children)


def _text(child: Child) -> str:
    match child:
        case None:
            return ""
        case Safe():
            return child
        case str() | int() | float():
            return escape(str(child))
    return _inner(child)


def table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[Child]], *, words: int = 1) -> Safe:
    """A table whose first ``words`` columns are words and the others figures; the first names its row."""
    names = list(heads)
    head = [tag("th", name, scope="col", class_=None if i < words else "n") for i, name in enumerate(names)]
    body = [tag("tr", _cells(list(row), words)) for row in rows]
    if not body:
        body = [tag("tr", tag("td", "none", colspan=len(names), class_="none"))]
    shown = tag("table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", body))
    return tag("div", shown, class_="wide", tabindex=0, role="region", aria_label=caption)


def _cells(cells: list[Child], words: int) -> list[Child]:
    first = tag("th", cells[0], scope="row")
    return [first, *(tag("td", c, class_=None if i < words else "n") for i, c in enumerate(cells[1:], 1))]
