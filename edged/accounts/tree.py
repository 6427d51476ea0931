"""Directories: making, listing, and removing with all that lies below. All beneath an open root."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edged.accounts.api import Entry
from edged.accounts.beneath import DIRECTORY, INTO, LOOK_LINK, Beneath
from edged.accounts.entries import entry, is_text, look
from edged.accounts.faults import of_os
from edged.accounts.rules import TEMPORARY_PREFIX
from edged.errors import Busy, Incomplete, TooLarge

_GONE_PREFIX = TEMPORARY_PREFIX + "gone-"  # invisible like a temporary
_DEPTH = 100
_ROUNDS = 1000
_TOLD_BYTES = 16 << 10  # of paths that resisted: a message must hold them


class Listing(msgspec.Struct, frozen=True, array_like=True):
    """A directory on the wire. ``odd`` are those whose names are not UTF-8, by their bytes."""

    entries: list[Entry]
    odd: list[tuple[bytes, Entry]]


@contextmanager
def opened(how: Beneath, root: int, path: str) -> Iterator[int]:
    """A descriptor for the ``with`` block. Raises OSError."""
    fd = how.open(root, os.fsencode(path))
    try:
        yield fd
    finally:
        os.close(fd)


def make(root: int, path: str, *, parents: bool) -> None:
    """Make a directory; with ``parents`` also what leads to it, and none need be new. Raises OSError."""
    if not parents:
        above, _, name = path.rpartition("/")
        with opened(DIRECTORY, root, above) as fd:
            os.mkdir(name or ".", 0o777, dir_fd=fd)
        return
    try:
        with opened(DIRECTORY, root, path):
            return
    except FileNotFoundError:
        pass
    above, _, name = path.rpartition("/")
    if above:
        make(root, above, parents=True)
    with opened(DIRECTORY, root, above) as fd:
        try:
            os.mkdir(name, 0o777, dir_fd=fd)
        except FileExistsError:
            return
        os.fsync(fd)  # a durable file in it needs the way to it


def listing(root: int, path: str, limit: int) -> Listing:
    """All visible members. Raises TooLarge above ``limit``, OSError. Hot: ten thousand entries are usual."""
    entries: list[Entry] = []
    odd: list[tuple[bytes, Entry]] = []
    with opened(DIRECTORY, root, path) as fd, os.scandir(fd) as members:
        for count, member in enumerate(members):
            if count >= limit:
                raise TooLarge(f"more than {limit} entries in one directory")
            name = member.name
            if name.startswith(TEMPORARY_PREFIX):
                continue
            found = _member(root, path, member)
            if found is None:
                continue
            if name.isascii() or is_text(name):
                entries.append(found)
            else:
                odd.append((os.fsencode(name), found))
    return Listing(entries, odd)


def _member(root: int, path: str, member: os.DirEntry[str]) -> Entry | None:
    """None when it went away meanwhile."""
    try:
        facts = member.stat(follow_symlinks=False)
        if stat.S_ISLNK(facts.st_mode):
            return look(root, f"{path}/{member.name}" if path else member.name)
        return entry(member.name, facts)
    except FileNotFoundError:
        return None


def remove(root: int, path: str, *, recursive: bool) -> None:
    """Remove a file, link or directory; the root itself never. Raises OSError.

    Incomplete: of a directory all is gone but what it tells, and what leads there.
    """
    above, _, name = path.rpartition("/")
    if not name:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    with opened(DIRECTORY, root, above) as parent:
        with opened(LOOK_LINK, parent, name) as fd:
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        if not directory:
            os.unlink(name, dir_fd=parent)
            return
        if recursive:
            Removal(parent, name).run()
        os.rmdir(name, dir_fd=parent)


class Removal:
    """Removes all below a directory; what resists is noted and the rest goes on."""

    def __init__(self, parent: int, name: str) -> None:
        self._parent = parent
        self._name = name
        self._failed: dict[bytes, tuple[str, str]] = {}
        self._told = 0
        self._raised = False  # something too deep was moved up, where the next round meets it

    def run(self) -> None:
        """Raises Incomplete; Busy when others fill it at the same time."""
        with _entered(self._parent, self._name) as top:
            for _ in range(_ROUNDS):
                self._raised = False
                self._empty(top, top, [], 0)
                if self._failed and not self._raised:
                    raise Incomplete("a part could not be removed", failed=self._failed)
                if not os.listdir(top):  # noqa: PTH208 - by descriptor
                    return
        raise Busy("the directory is being filled while it is removed")

    def _empty(self, top: int, fd: int, way: list[str], depth: int) -> None:
        with os.scandir(fd) as found:
            members = [(member.name, member.is_dir(follow_symlinks=False)) for member in found]
        for name, directory in members:
            try:
                if not directory:
                    os.unlink(name, dir_fd=fd)
                elif depth >= _DEPTH:
                    os.rename(name, _GONE_PREFIX + secrets.token_hex(8), src_dir_fd=fd, dst_dir_fd=top)
                    self._raised = True
                else:
                    with _entered(fd, name) as below:
                        self._empty(top, below, [*way, name], depth + 1)
                    _rmdir_if_empty(name, fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._note(os.fsencode("/".join([*way, name])), error)

    def _note(self, path: bytes, error: OSError) -> None:
        self._told += len(path)
        if self._told <= _TOLD_BYTES:
            why = of_os(error)
            self._failed[path] = (why.code, why.message)


def _rmdir_if_empty(name: str, fd: int) -> None:
    try:
        os.rmdir(name, dir_fd=fd)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # filled again meanwhile: the next round sees it
            raise


@contextmanager
def _entered(parent: int, name: str) -> Iterator[int]:
    """Open a directory to empty it; its owner may have closed it to itself."""
    with opened(LOOK_LINK, parent, name) as held:
        facts = os.fstat(held)
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and facts.st_mode & 0o700 != 0o700:
            Path(f"/proc/self/fd/{held}").chmod(0o700)
    with opened(INTO, parent, name) as fd:
        yield fd


def sweep(root: int, path: str, older_s: float) -> int:
    """Remove temporaries not written to for ``older_s`` seconds, in ``path`` and below; how many."""
    before = time.time() - older_s
    removed = 0
    waiting = [path]
    while waiting:
        here = waiting.pop()
        with opened(DIRECTORY, root, here) as fd, os.scandir(fd) as members:
            for member in members:
                if member.name.startswith(TEMPORARY_PREFIX):
                    removed += _remove_older(member, fd, before)
                elif member.is_dir(follow_symlinks=False):
                    waiting.append(f"{here}/{member.name}" if here else member.name)
    return removed


def _remove_older(member: os.DirEntry[str], fd: int, before: float) -> int:
    try:
        if not member.is_file(follow_symlinks=False) or member.stat(follow_symlinks=False).st_mtime > before:
            return 0
        os.unlink(member.name, dir_fd=fd)
    except FileNotFoundError:
        return 0
    return 1
