"""Days as stacked bars, in SVG that needs nothing else. Pure.

Colours are classes of the style sheet, so that light and dark are its matter; each VO keeps its colour in
all plots. What a bar says is also its title, and all of it is in the tables and the CSV.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.portal.html import Safe, tag

WIDTH, HEIGHT = 640, 190
LEFT, RIGHT, TOP, BOTTOM = 64, 8, 10, 24
COLOURS = 8  # classes c0 to c7; the last stands for all others
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Plot:
    """``values``: series → day → value. ``shown`` writes a value with its unit."""

    title: str
    days: Sequence[str]
    values: Mapping[str, Mapping[str, float]]
    shown: Callable[[float], str]
    binary: bool = False


def palette(totals: Mapping[str, float]) -> dict[str, int]:
    """Series → colour, the largest first; what has no colour of its own is one of the others."""
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    return {name: min(rank, COLOURS - 1) for rank, name in enumerate(ranked)}


def bars(plot: Plot, colours: Mapping[str, int], ident: str) -> Safe:
    """The figure with its legend; a sentence instead when there is nothing to show."""
    totals = [sum(series.get(day, 0.0) for series in plot.values.values()) for day in plot.days]
    top = ceiling(max(totals, default=0.0), binary=plot.binary)
    if top == 0:
        return tag("figure", tag("figcaption", plot.title), tag("p", "Nothing in these days.", class_="none"))
    drawn = tag(
        "svg",
        tag(
            "title",
            f"{plot.title}, {plot.days[0]} to {plot.days[-1]}: {plot.shown(sum(totals))}",
            id=f"{ident}-t",
        ),
        _scale(plot, top),
        [_day(plot, colours, index, top) for index in range(len(plot.days))],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{ident}-t",
    )
    return tag("figure", tag("figcaption", plot.title), drawn, _legend(plot, colours))


def ceiling(value: float, *, binary: bool = False) -> float:
    """The next of 1, 2, 5 times a power of ten; of a power of 1024 that count, for bytes."""
    if value <= 0:
        return 0.0
    if binary and value > 1024:
        unit: float = 1024.0 ** math.floor(math.log(value, 1024))
        return ceiling(value / unit) * unit
    base: float = 10.0 ** math.floor(math.log10(value))
    return next(step * base for step in (1, 2, 5, 10) if step * base >= value * 0.9999)


def _y(value: float, top: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)


def _scale(plot: Plot, top: float) -> list[Safe]:
    parts: list[Safe] = []
    for share in (0.0, 0.5, 1.0):
        y = round(_y(top * share, top), 1)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", plot.shown(top * share), x=LEFT - 6, y=y + 4, text_anchor="end"))
    step = max(1, round(len(plot.days) / 6))
    for index in range(0, len(plot.days), step):
        x = round(_x(plot, index) + _width(plot) / 2, 1)
        parts.append(tag("text", plot.days[index][5:], x=x, y=HEIGHT - 6, text_anchor="middle"))
    return parts


def _width(plot: Plot) -> float:
    return (WIDTH - LEFT - RIGHT) / max(1, len(plot.days))


def _x(plot: Plot, index: int) -> float:
    return LEFT + index * _width(plot)


def _day(plot: Plot, colours: Mapping[str, int], index: int, top: float) -> list[Safe]:
    day, below, parts = plot.days[index], 0.0, list[Safe]()
    for name in sorted(plot.values, key=lambda one: colours.get(one, COLOURS - 1)):
        value = plot.values[name].get(day, 0.0)
        if value <= 0:
            continue
        upper, lower = _y(below + value, top), _y(below, top)
        parts.append(
            tag(
                "rect",
                tag("title", f"{day} {name}: {plot.shown(value)}"),
                x=round(_x(plot, index) + 1, 1),
                width=round(max(1.0, _width(plot) - 2), 1),
                y=round(upper, 1),
                height=round(max(0.5, lower - upper - 1), 1),
                class_=f"c{colours.get(name, COLOURS - 1)}",
            )
        )
        below += value
    return parts


def _legend(plot: Plot, colours: Mapping[str, int]) -> Safe:
    there = [name for name in colours if sum(plot.values.get(name, {}).values()) > 0]
    named = [name for name in there if colours[name] < COLOURS - 1]
    items = [(colours[name], name, sum(plot.values[name].values())) for name in named]
    if rest := [name for name in there if colours[name] == COLOURS - 1]:
        label = rest[0] if len(rest) == 1 else OTHERS
        items.append((COLOURS - 1, label, sum(sum(plot.values[name].values()) for name in rest)))
    return tag("ul", [_key(*item, plot.shown) for item in items], class_="legend")


def _key(colour: int, name: str, total: float, shown: Callable[[float], str]) -> Safe:
    return tag("li", tag("span", class_=f"key c{colour}", aria_hidden="true"), f"{name} {shown(total)}")
