"""Names of Kubernetes that become names of files here. Pure."""

from __future__ import annotations

import re

from edged.errors import BadRequest

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")


def check_label(text: str, what: str) -> str:
    """A DNS label (RFC 1123), as containers and volumes are called. Raises BadRequest."""
    if not _LABEL.fullmatch(text):
        raise BadRequest(f"not a name of a {what}: {text[:64]!r}")
    return text


def check_uid(text: str) -> str:
    """A pod's uid: UUIDs, and the plain words of static pods. Raises BadRequest."""
    if not _UID.fullmatch(text):
        raise BadRequest(f"not a pod's uid: {text[:64]!r}")
    return text
