"""Files that the configuration names and somebody must have put there. The one place here that asks the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from edged.config.base import Given, Section


def missing(section: Section, path: str = "") -> Iterator[str]:
    """``tls.key: /etc/…: No such file or directory``; what only root may see counts as there."""
    for key, field in type(section).model_fields.items():
        name = f"{path}.{field.alias or key}" if path else field.alias or key
        value = getattr(section, key)
        items = value if isinstance(value, tuple) else (value,)
        for index, item in enumerate(items):
            where = f"{name}[{index}]" if isinstance(value, tuple) else name
            if isinstance(item, Section):
                yield from missing(item, where)
            elif isinstance(item, Path) and _is_given(field.annotation, field.metadata):
                yield from _looked_at(where, item)


def _looked_at(where: str, file: Path) -> Iterator[str]:
    try:
        file.stat()
    except PermissionError:
        return
    except OSError as error:
        yield f"{where}: {file}: {error.strerror}"


def _is_given(annotation: object, metadata: list[object]) -> bool:
    return Given in metadata or any(
        _is_given(part, list(getattr(part, "__metadata__", ()))) for part in get_args(annotation)
    )
