"""Filter ``edged_toml``: a mapping as TOML, tables after plain values, sorted by nothing but the writer's order."""

from __future__ import annotations

import json


def _value(value):
    """One inline value. JSON's strings, numbers and booleans are TOML's too."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    return _string(str(value))


def _string(text):
    """JSON escapes what TOML does, except for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key):
    key = str(key)
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _string(key)


def _is_tables(value):
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _table(table, path):
    """The lines of one table: its plain values first, since what follows a header belongs to that."""
    kept = {key: value for key, value in table.items() if value is not None}
    tables = {key: value for key, value in kept.items() if isinstance(value, dict) or _is_tables(value)}
    for key, value in kept.items():
        if key not in tables:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in tables.items():
        name = ".".join((*path, _key(key)))
        for item in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
            yield from _table(item, (*path, _key(key)))


def edged_toml(tree):
    """The whole document."""
    return "\n".join(_table(tree, ())).lstrip("\n") + "\n"


class FilterModule:
    """What Ansible looks for."""

    def filters(self):
        return {"edged_toml": edged_toml}
