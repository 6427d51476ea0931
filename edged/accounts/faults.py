"""Errors across processes: OSError → one of edged's errors, and those onto the wire and back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from edged import errors
from edged.accounts.messages import Failure
from edged.errors import EdgeError

_BY_ERRNO: dict[int, tuple[type[EdgeError], str]] = {
    errno.ENOENT: (errors.NotFound, "no such file or directory"),
    errno.ESTALE: (errors.NotFound, "no such file or directory"),
    errno.EACCES: (errors.Denied, "permission denied by the file system"),
    errno.EPERM: (errors.Denied, "permission denied by the file system"),
    errno.EROFS: (errors.Denied, "read-only file system"),
    errno.EXDEV: (errors.Denied, "the path leaves the export"),  # what openat2 says of an escape
    errno.ELOOP: (errors.Denied, "too many or forbidden links in the path"),
    errno.EEXIST: (errors.Conflict, "it exists already"),
    errno.ENOTEMPTY: (errors.Conflict, "directory not empty"),
    errno.ENOTDIR: (errors.Conflict, "a part of the path is not a directory"),
    errno.EISDIR: (errors.Conflict, "it is a directory"),
    errno.ETXTBSY: (errors.Conflict, "the file is in use"),
    errno.EMLINK: (errors.Conflict, "too many links"),
    errno.ENOSPC: (errors.NoSpace, "no space left on the file system"),
    errno.EDQUOT: (errors.NoSpace, "quota used up"),
    errno.EFBIG: (errors.NoSpace, "file too large for the file system"),
    errno.ENAMETOOLONG: (errors.BadRequest, "name too long"),
    errno.EINVAL: (errors.BadRequest, "not possible on this file system"),
    errno.EOPNOTSUPP: (errors.BadRequest, "not possible on this file system"),
    errno.ENXIO: (errors.BadRequest, "not a regular file"),
    errno.E2BIG: (errors.TooLarge, "too large for the file system"),
    errno.ERANGE: (errors.TooLarge, "too large for the file system"),
    errno.EAGAIN: (errors.Busy, "the path is being changed, try again"),
    errno.EBUSY: (errors.Busy, "in use"),
    errno.EMFILE: (errors.Busy, "too many open files"),
    errno.ENFILE: (errors.Busy, "too many open files"),
}


def of_os(error: OSError) -> EdgeError:
    """The typed error for a failed system call; an unknown errno (EIO …) is Unavailable."""
    kind, text = _BY_ERRNO.get(error.errno or 0, (errors.Unavailable, "the file system failed"))
    return kind(text, detail=os.strerror(error.errno) if error.errno else repr(error))


def to_wire(error: EdgeError) -> Failure:
    """``error`` as it travels: its class by codes, text and values."""
    codes = [kind.code for kind in type(error).__mro__ if issubclass(kind, EdgeError)]
    values = dict(error.values)
    if isinstance(error, errors.Busy):
        values["retry_after_s"] = error.retry_after_s
    return Failure(tuple(dict.fromkeys(codes)), error.message, error.detail, values)


def of_code(code: str, message: str) -> EdgeError:
    """The error that a code stands for."""
    return from_wire(Failure((code,), message))


def from_wire(failure: Failure) -> EdgeError:
    """The error again, as the nearest class this process knows."""
    known = {kind.code: kind for kind in _subclasses(EdgeError)}
    for code in failure.codes:
        if code in known:
            try:
                return known[code](failure.message, detail=failure.detail, **failure.values)
            except TypeError:  # a class with another constructor: its base class tells enough
                continue
    return errors.Unavailable(failure.message, detail=failure.detail)


def _subclasses(kind: type[EdgeError]) -> Iterator[type[EdgeError]]:
    for child in kind.__subclasses__():
        yield from _subclasses(child)
        yield child
