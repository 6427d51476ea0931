"""What each file request needs of a grant: the worker's policy, pure. The kernel checks again.

Source: WLCG Common JWT Profile 1.3, "storage" capabilities; DESIGN §1 for job grants.
"""

from __future__ import annotations

import re
from enum import Enum

from edged.accounts.api import SESSIONS
from edged.errors import BadRequest, Denied
from edged.identity.grants import Grant, within
from edged.identity.words import Action

TEMPORARY_PREFIX = ".edged-upload-"
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CHECKSUMS = ("XrdCks.", "edged.")  # what a reader's checksum may be remembered under


class Need(Enum):
    """What a request does to its path."""

    LOOK = "look"
    LIST = "list"
    READ = "read"
    CREATE = "create"
    MAKE = "make"  # a directory
    REPLACE = "replace"
    REMOVE = "remove"
    NOTE = "note"  # remember a checksum of what was read


_STORAGE = frozenset(action for action in Action if action.value.startswith("storage."))
_WRITE = frozenset({Action.STORAGE_CREATE, Action.STORAGE_MODIFY})
_STORAGE_NEEDS: dict[Need, frozenset[Action]] = {
    Need.LOOK: _STORAGE,
    Need.LIST: _STORAGE,
    Need.READ: frozenset({Action.STORAGE_READ}),
    Need.CREATE: _WRITE,
    Need.MAKE: _WRITE,
    Need.REPLACE: frozenset({Action.STORAGE_MODIFY}),
    Need.REMOVE: frozenset({Action.STORAGE_MODIFY}),
    Need.NOTE: _WRITE | {Action.STORAGE_READ},
}
_SESSION_NEEDS: dict[Need, frozenset[Action]] = {
    Need.LOOK: frozenset({Action.JOB_STAGE, Action.JOB_POLL, Action.JOB_CLEAN}),
    Need.LIST: frozenset({Action.JOB_STAGE, Action.JOB_POLL, Action.JOB_CLEAN}),
    Need.READ: frozenset({Action.JOB_STAGE, Action.JOB_POLL}),
    Need.CREATE: frozenset({Action.JOB_STAGE}),
    Need.MAKE: frozenset({Action.JOB_STAGE, Action.JOB_SUBMIT}),
    Need.REPLACE: frozenset({Action.JOB_STAGE}),
    Need.REMOVE: frozenset({Action.JOB_CLEAN}),
    Need.NOTE: frozenset({Action.JOB_STAGE}),
}


def checked(path: str) -> str:
    """``path`` if it is normalised and relative, else BadRequest: scopes are compared as text."""
    if "\0" in path or path.startswith("/"):
        raise BadRequest("not a relative path")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise BadRequest("path is not normalised")
    return path


def require(grant: Grant, need: Need, export: str, prefix: str, path: str) -> None:
    """Raises Denied unless ``grant`` covers ``need`` at ``path`` of ``export``, which lies at ``prefix``."""
    if export == SESSIONS:
        _require_session(grant, need, path)
        return
    name = namespace_path(prefix, path)
    actions = _STORAGE_NEEDS[need]
    for scope in grant.scopes:
        if not actions.isdisjoint(scope.actions) and within(name, scope.root):
            return
    if need in (Need.LOOK, Need.MAKE) and _leads_to_scope(grant, actions, name):
        return
    raise Denied(f"the grant does not cover this ({need.value})", detail=name)


def require_directory_write(grant: Grant, export: str, prefix: str, directory: str) -> None:
    """For temporaries: whoever may create something in ``directory`` may have one there.

    A scope may name a single file, and its temporary cannot lie within that.
    """
    if export == SESSIONS:
        _require_session(grant, Need.CREATE, directory)
        return
    name = namespace_path(prefix, directory)
    for scope in grant.scopes:
        if scope.actions & _WRITE and (within(name, scope.root) or parent(scope.root) == name):
            return
    raise Denied("the grant does not cover writing here", detail=name)


def require_rename(
    grant: Grant, export: str, prefix: str, source: str, target: str, *, replace: bool
) -> None:
    """storage.modify on both ends; or storage.create within one scope, replacing nothing."""
    if export == SESSIONS:
        _require_session(grant, Need.REPLACE, source)
        _require_session(grant, Need.REPLACE, target)
        return
    first, second = namespace_path(prefix, source), namespace_path(prefix, target)
    if grant.allows(Action.STORAGE_MODIFY, first) and grant.allows(Action.STORAGE_MODIFY, second):
        return
    if not replace and any(
        Action.STORAGE_CREATE in scope.actions and within(first, scope.root) and within(second, scope.root)
        for scope in grant.scopes
    ):
        return
    raise Denied("the grant does not cover this (rename)", detail=f"{first} to {second}")


def need_of_attributes(names: list[str]) -> Need:
    """Checksums may be remembered by who reads; everything else is a change of the file."""
    return Need.NOTE if all(name.startswith(_CHECKSUMS) for name in names) else Need.CREATE


def is_temporary(path: str) -> bool:
    """Whether the last segment is one of our invisible names."""
    return path.rpartition("/")[2].startswith(TEMPORARY_PREFIX)


def namespace_path(prefix: str, path: str) -> str:
    """``/cms`` and ``a/b`` → ``/cms/a/b``."""
    return f"{prefix.rstrip('/')}/{path}".rstrip("/") or "/"


def parent(path: str) -> str:
    """``/a/b`` → ``/a``; ``/a`` → ``/``; ``a`` → ``""``."""
    above = path.rpartition("/")[0]
    return above or ("/" if path.startswith("/") else "")


def _leads_to_scope(grant: Grant, actions: frozenset[Action], name: str) -> bool:
    """WLCG 1.3: storage.create may also make the missing leading directories of its scope path."""
    return any(scope.actions & actions and within(scope.root, name) for scope in grant.scopes)


def _require_session(grant: Grant, need: Need, path: str) -> None:
    job = path.partition("/")[0]
    if grant.kind != "job" or not grant.job or grant.job != job or not _JOB.fullmatch(job):
        raise Denied("only a job's own grant opens its session directory", detail=path)
    if not any(scope.actions & _SESSION_NEEDS[need] for scope in grant.scopes):
        raise Denied(f"the job grant does not cover this ({need.value})", detail=path)
