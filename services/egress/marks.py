"""Which job a node's DSCP mark stands for, told by the node's prolog and epilog.

    PUT    /.edged/marks/42?job=1234&account=cmsprd     from a port below 1024
    DELETE /.edged/marks/42

A port below 1024 proves root on the node (as for NFS), which the mark itself relies on already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edged.egress.addresses import Address

_PATH = re.compile(
    r"/\.edged/marks/([1-9]|[1-5]\d|6[0-3])(?:\?job=([\w.-]{1,64})(?:&account=([a-z_][\w.-]{0,31}))?)?"
)
_MOST = 65536
OWN = "/.edged/"
RESERVED_PORTS = 1024


@dataclass(frozen=True, slots=True)
class Marked:
    """A job as the batch system names it."""

    job: str
    account: str


class Marks:
    """(node, mark) → job, until the node says otherwise."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[Address, int], Marked] = {}

    def of(self, node: Address, mark: int) -> Marked | None:
        """The job a mark stands for; 0 is no mark."""
        return self._jobs.get((node, mark))

    def tell(self, method: str, target: str, node: Address, port: int) -> str | None:
        """Take a node's word; returns why not, or None."""
        match = _PATH.fullmatch(target)
        if match is None or method not in ("PUT", "DELETE") or (method == "PUT" and not match[2]):
            return "not PUT or DELETE of /.edged/marks/<1-63>"
        if port >= RESERVED_PORTS:
            return "only root on a node may say that: send it from a port below 1024"
        key = (node, int(match[1]))
        if method == "DELETE":
            self._jobs.pop(key, None)
        elif len(self._jobs) < _MOST:
            self._jobs[key] = Marked(match[2], match[3] or "")
        return None
