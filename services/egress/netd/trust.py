"""Whether a file can only have been written by root."""

from __future__ import annotations

import stat
from pathlib import Path

from edged.errors import ConfigError


def require_root_owned(file: Path) -> None:
    """The file, what lies beside it in conf.d, and every directory above. Raises ConfigError."""
    try:
        files = [file, *sorted((file.parent / "conf.d").glob("*.toml"))]
    except OSError as error:
        raise ConfigError([f"{file.parent}: {error.strerror}"]) from None
    directories = [*file.parents, *({file.parent / "conf.d"} if len(files) > 1 else set())]
    problems = [problem for path in (*files, *directories) if (problem := _problem(path))]
    if problems:
        raise ConfigError(problems)


def _problem(path: Path) -> str | None:
    try:
        found = path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    if found.st_uid != 0:
        return f"{path}: must belong to root"
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        return f"{path}: others than root can write it"
    return None
