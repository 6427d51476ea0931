"""A mistake in the file, told as whoever wrote the file would call it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from edged.config.base import Section

# what pydantic calls it → what stands in the file
_KINDS = {
    "tuple_type": "write a list: [{value}]",
    "model_type": "is one table: write [{path}], not [[{path}]]",
    "dict_type": "is a table: write [{path}]",
    "string_type": "write text, in quotes",
    "bool_type": "write true or false, without quotes",
    "bool_parsing": "write true or false, without quotes",
    "int_type": "write a whole number, without quotes",
    "int_parsing": "write a whole number, without quotes or unit",
    "float_type": "write a number, without quotes",
    "float_parsing": "write a number, without quotes or unit",
    "missing": "missing: this key is required",
}


def problem(item: Mapping[str, Any], model: type[Section]) -> str:
    """``storage.export[2].root: not an absolute path`` from an error of pydantic about ``model``."""
    # the tag of a union is no key of the file
    loc = [part for part in item["loc"] if not str(part).startswith("<")]
    path = _dotted(loc)
    return f"{path}: {_text(item, loc, path, model)}"


def _text(item: Mapping[str, Any], loc: Sequence[str | int], path: str, model: type[Section]) -> str:
    given = item.get("input")
    if item["type"] == "extra_forbidden":
        return _unknown(str(loc[-1]), sorted(_keys(model, loc[:-1])))
    if item["type"] == "tuple_type" and isinstance(given, dict):
        return f"is a list of tables: write [[{path}]], not [{path}]"
    if item["type"] == "model_type" and isinstance(given, list) and given and not isinstance(given[0], dict):
        return f"is a table: write [{path}]"
    if item["type"] in _KINDS:
        return _KINDS[item["type"]].format(path=path, value=_shown(given))
    return str(item["msg"]).removeprefix("Value error, ").replace("Input should be ", "must be ", 1)


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return (
        f"unknown key; is it {near[0]}?" if near else "unknown key (a spelling mistake, or a newer edged's)"
    )


def _shown(given: object) -> str:
    return f'"{given}"' if isinstance(given, str | int) and not isinstance(given, bool) else "…"


def _dotted(loc: Sequence[str | int]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _keys(model: type[Section], loc: Sequence[str | int]) -> set[str]:
    """What may stand in the section at ``loc``."""
    sections = [model]
    for part in loc:
        if isinstance(part, str):
            sections = [below for one in sections for below in _below(one, part)]
    return {_name(key, field) for one in sections for key, field in one.model_fields.items()}


def _below(section: type[Section], name: str) -> Iterator[type[Section]]:
    for key, field in section.model_fields.items():
        if _name(key, field) == name:
            yield from _sections(field.annotation)


def _sections(annotation: object) -> Iterator[type[Section]]:
    """Those in ``tuple[Export, ...] | None`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _name(key: str, field: Any) -> str:
    return field.alias or key
