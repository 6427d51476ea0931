"""What every section of the configuration is made of."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Frozen and strict: an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, validate_default=True)


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("not an absolute path")
    if ".." in path.parts:
        raise ValueError("must not contain '..'")
    return path


def _size(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("not a size: write a number of bytes or 10k, 64M, 2G, 1T (powers of 1024)")  # noqa: TRY004
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGTP]?)(?:i?B)?", value.strip())
    if match is None:
        raise ValueError(f"not a size: {value!r}; write 10k, 64M, 2G, 1T (powers of 1024)")
    return int(float(match[1]) * 1024 ** " KMGTP".index(match[2].upper() or " "))


def _listen(value: str) -> str:
    if value.startswith("/"):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"not an address: {value!r}; write 0.0.0.0:8443, [::]:8443 or /run/edged/x.sock")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ValueError(f"not an IP address: {host!r} (names are not resolved for listeners)") from None
    return value


def _account(value: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_.-]{0,31}", value):
        raise ValueError(f"not a local account name: {value!r}")
    return value


def _word(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError(f"not a plain name: {value!r} (letters, digits, '_', '.', '-')")
    return value


def _prefix(value: str) -> str:
    if value == "/":
        return value
    parts = value.split("/")
    if parts[0] or any(part in ("", ".", "..") for part in parts[1:]):
        raise ValueError(f"not a normalised absolute path: {value!r}")
    return value


class Given:
    """Marks a path that the site provides: `edged check` looks whether it is there."""


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
GivenPath = Annotated[Path, AfterValidator(_absolute), Given]
ByteSize = Annotated[int, BeforeValidator(_size), Field(ge=0)]
ListenAddress = Annotated[str, AfterValidator(_listen)]
AccountNameField = Annotated[str, AfterValidator(_account)]
Word = Annotated[str, AfterValidator(_word)]
Prefix = Annotated[str, AfterValidator(_prefix)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
