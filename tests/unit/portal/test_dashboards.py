"""Every dashboard through Grafana Labs' own models of what Grafana 11.6 loads: no field unknown or of another type."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARDS = Path(__file__).parents[3] / "ansible/roles/edged_monitoring/files/dashboards"
FILES = sorted(DASHBOARDS.glob("*.json"))
SCALARS: dict[object, tuple[type, ...]] = {str: (str,), int: (int,), float: (int, float)}


def mistakes(board: dict[str, Any]) -> list[str]:
    """What Grafana would ignore or stumble over, each with its path."""
    register_default_plugins()
    model = Dashboard.from_json(board)
    kept = json.loads(json.dumps(model, cls=JSONEncoder))
    return [*lost(board, kept, "board"), *ill_typed(model, "board")]


def lost(given: Any, kept: Any, path: str) -> Iterator[str]:
    """What the model did not take over."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from lost(value, kept.get(key), f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{path}[{index}]")
    elif given != kept:
        yield f"{path}: unknown"


def ill_typed(model: Any, path: str) -> Iterator[str]:
    """Fields of a model whose value is not of the declared type; the SDK itself does not look."""
    for name, hint in get_type_hints(type(model)).items():
        if hasattr(model, name) and not fits(getattr(model, name), hint):
            yield f"{path}.{name}: {getattr(model, name)!r} is no {hint}"
    for name, value in vars(model).items():
        for index, one in enumerate(value if isinstance(value, list) else [value]):
            if hasattr(one, "to_json"):
                yield from ill_typed(one, f"{path}.{name}[{index}]")


def fits(value: Any, hint: Any) -> bool:
    kind, within = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, one) for one in within)
    if kind is Literal:
        return value in within
    if kind is list:
        return isinstance(value, list) and all(fits(one, within[0]) for one in value)
    if kind is dict:
        return isinstance(value, dict) and all(fits(one, within[1]) for one in value.values())
    if kind in (Any, object):
        return True
    if issubclass(kind, Enum):
        return value in {one.value for one in kind}
    return isinstance(value, SCALARS.get(kind, (kind,))) and (kind is bool or not isinstance(value, bool))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_grafana_knows_every_field(file: Path) -> None:
    assert mistakes(json.loads(file.read_text())) == []


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("panels", 0, "options", "legnd"), {}, "board.panels[0].options.legnd: unknown"),
        (("panels", 0, "fieldConfig", "defaults", "unitt"), "s", "defaults.unitt: unknown"),
        (("panels", 0, "fieldConfig", "defaults", "unit"), 7, "unit: 7 is no"),
        (("panels", 0, "gridPos", "w"), "wide", "w: 'wide' is no"),
        (("panels", 0, "targets", 0, "exprr"), "up", "targets[0].exprr: unknown"),
        (("panels", 0, "targets", 0, "format"), "graph", "format_val: 'graph' is no"),
        (("time", "until"), "now", "board.time.until: unknown"),
        (("editable",), "no", "board.editable: 'no' is no"),
        (("templating", "list", 0, "type"), "menu", "type_val: 'menu' is no"),
    ],
)
def test_a_mistake_would_be_seen(place: tuple[Any, ...], value: Any, said: str) -> None:
    board = copy.deepcopy(json.loads((DASHBOARDS / "edged-cache.json").read_text()))
    inner = board
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    found = mistakes(board)
    assert len(found) == 1 and said in found[0], found
