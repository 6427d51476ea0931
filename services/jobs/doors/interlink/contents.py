"""ConfigMaps, Secrets and projected volumes of one pod, whichever form of /create brought them. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from edged.errors import BadRequest
from services.jobs.doors.interlink.pods import Create, KeptObject

Content = dict[str, bytes]
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


@dataclass(frozen=True, slots=True)
class Contents:
    """Object name → key → bytes. ``projected`` goes by volume name, its keys are file paths."""

    config_maps: dict[str, Content] = field(default_factory=dict)
    secrets: dict[str, Content] = field(default_factory=dict)
    projected: dict[str, Content] = field(default_factory=dict)

    @classmethod
    def of(cls, body: Create) -> Contents:
        """From either form. An API server repeats the objects for each container."""
        parts = body.container or ()
        return cls(
            _texts((*(body.configmaps or ()), *(o for c in parts for o in c.config_maps or ()))),
            _secrets((*(body.secrets or ()), *(o for c in parts for o in c.secrets or ()))),
            _texts(
                (
                    *(body.projectedvolumesmaps or ()),
                    *(o for c in parts for o in c.projectedvolumemaps or ()),
                ),
                paths=True,
            ),
        )


def _texts(objects: Iterable[KeptObject], *, paths: bool = False) -> dict[str, Content]:
    return {o.metadata.name: _content(o, paths=paths) for o in objects}


def _content(kept: KeptObject, *, paths: bool) -> Content:
    found = {key: value.encode() for key, value in (kept.data or {}).items()}
    found |= {key: _decoded(key, value) for key, value in (kept.binary_data or {}).items()}
    return {check_path(key) if paths else _key(key): value for key, value in found.items()}


def _secrets(objects: Iterable[KeptObject]) -> dict[str, Content]:
    return {
        o.metadata.name: {
            **{_key(key): _decoded(key, value) for key, value in (o.data or {}).items()},
            **{_key(key): value.encode() for key, value in (o.string_data or {}).items()},
        }
        for o in objects
    }


def _decoded(key: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"the value of {key[:64]!r} is not base64") from None


def _key(key: str) -> str:
    if not _KEY.fullmatch(key) or key in (".", ".."):
        raise BadRequest(f"not a key of a ConfigMap or Secret: {key[:64]!r}")
    return key


def check_path(path: str) -> str:
    """A file's path inside its volume. Raises BadRequest when it would leave it."""
    parts = path.split("/")
    if len(path) > 1024 or not path.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise BadRequest(f"not a path inside a volume: {path[:64]!r}")
    return path
