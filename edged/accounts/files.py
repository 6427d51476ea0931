"""The files kind of worker: each request, checked against its grant, then done beneath its export."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import cast

from edged.accounts import entries, messages, publish, rules, space, tree
from edged.accounts.api import SESSIONS
from edged.accounts.beneath import DIRECTORY, READ, WRITE, Root, Roots, regular
from edged.accounts.messages import ExportRoot, Request, Start
from edged.accounts.rules import Need
from edged.accounts.worker import Answer
from edged.errors import BadRequest, NotFound
from edged.identity.grants import Grant


class FileCalls:
    """Performs file requests as the account. See ``worker.Calls``."""

    decode: Callable[[memoryview], Request] = staticmethod(messages.decoder(messages.FilesRequest))

    def __init__(self, start: Start) -> None:
        self._exports = {export.label: export for export in start.exports}
        if start.sessions:
            self._exports[SESSIONS] = ExportRoot(SESSIONS, "", start.sessions)
        self._roots = Roots()
        self._calls: dict[type[Request], Callable[..., Answer]] = {
            messages.Stat: _stat,
            messages.Open: _open,
            messages.Append: _append,
            messages.MakeTemporary: _temporary,
            messages.Commit: _commit,
            messages.Discard: _discard,
            messages.List: _list,
            messages.MakeDirectory: _make_directory,
            messages.Remove: _remove,
            messages.Rename: _rename,
            messages.GetAttributes: _attributes,
            messages.SetAttributes: _set_attributes,
            messages.SetTimes: _set_times,
            messages.GetSpace: _space,
            messages.Sweep: _sweep,
        }

    def answer(self, grant: Grant, request: Request, body: int | None) -> Answer:
        """Do one request. Raises EdgeError or OSError."""
        asked = cast("messages.FileRequest", request)
        export = self._exports.get(asked.export)
        if export is None:
            raise NotFound("no such export for this account", detail=asked.export)
        path = rules.checked(os.fsdecode(asked.path))
        return self._calls[type(request)](Where(grant, export, path, self._roots.get(export.root)), asked)


class Where:
    """The grant and the place of one request, with the checks that both need."""

    __slots__ = ("_held", "export", "grant", "path", "root")

    def __init__(self, grant: Grant, export: ExportRoot, path: str, root: Root) -> None:
        self.grant = grant
        self.export = export
        self.path = path
        self._held = root  # its descriptor lives as long as this object
        self.root = root.fd

    def need(self, need: Need, path: str | None = None) -> None:
        """Raises Denied unless the grant covers it; NotFound for what is invisible."""
        path = self.path if path is None else path
        rules.require(self.grant, need, self.export.label, self.export.prefix, path)
        if rules.is_temporary(path):
            raise NotFound("no such file or directory")

    def need_temporary(self) -> None:
        """Raises unless the path is a temporary in a directory that the grant may write."""
        if not rules.is_temporary(self.path):
            raise BadRequest("not a temporary file")
        directory = rules.parent(self.path)
        rules.require_directory_write(self.grant, self.export.label, self.export.prefix, directory)


def _stat(where: Where, _: messages.Stat) -> Answer:
    where.need(Need.LOOK)
    return Answer(entries.look(where.root, where.path))


def _open(where: Where, _: messages.Open) -> Answer:
    where.need(Need.READ)
    fd = READ.open(where.root, os.fsencode(where.path))
    return Answer(entries.entry(where.path.rpartition("/")[2], regular(fd)), fd)


def _append(where: Where, _: messages.Append) -> Answer:
    where.need_temporary()
    fd = WRITE.open(where.root, os.fsencode(where.path))
    return Answer(entries.entry(where.path.rpartition("/")[2], regular(fd)), fd)


def _temporary(where: Where, asked: messages.MakeTemporary) -> Answer:
    where.need(Need.CREATE)
    fd, path = publish.temporary(where.root, where.path, parents=asked.parents, mode=asked.mode & 0o777)
    return Answer(os.fsencode(path), fd)


def _commit(where: Where, asked: messages.Commit) -> Answer:
    where.need_temporary()
    target = rules.checked(os.fsdecode(asked.target))
    where.need(Need.REPLACE if asked.replace else Need.CREATE, target)
    done = publish.commit(
        where.root,
        where.path,
        target,
        replace=asked.replace,
        durable=asked.durable,
        attributes=asked.attributes,
        mtime_ns=asked.mtime_ns,
    )
    return Answer(done)


def _discard(where: Where, _: messages.Discard) -> Answer:
    where.need_temporary()
    with contextlib.suppress(FileNotFoundError):
        tree.remove(where.root, where.path, recursive=False)
    return Answer(None)


def _list(where: Where, asked: messages.List) -> Answer:
    where.need(Need.LIST)
    return Answer(tree.listing(where.root, where.path, asked.limit))


def _make_directory(where: Where, asked: messages.MakeDirectory) -> Answer:
    where.need(Need.MAKE)
    tree.make(where.root, where.path, parents=asked.parents)
    return Answer(None)


def _remove(where: Where, asked: messages.Remove) -> Answer:
    where.need(Need.REMOVE)
    tree.remove(where.root, where.path, recursive=asked.recursive)
    return Answer(None)


def _rename(where: Where, asked: messages.Rename) -> Answer:
    """Whether something was replaced. A file never replaces a directory, nor the other way round."""
    target = rules.checked(os.fsdecode(asked.target))
    label, prefix = where.export.label, where.export.prefix
    rules.require_rename(where.grant, label, prefix, where.path, target, replace=asked.replace)
    if rules.is_temporary(where.path) or rules.is_temporary(target):
        raise NotFound("no such file or directory")
    old, new = where.path.rpartition("/")[2], target.rpartition("/")[2]
    if not old or not new:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    with (
        tree.opened(DIRECTORY, where.root, rules.parent(where.path)) as source,
        tree.opened(DIRECTORY, where.root, rules.parent(target)) as destination,
    ):
        try:
            publish.move(source, old, destination, new, replace=False)
        except FileExistsError:
            if not asked.replace:
                raise
            publish.move(source, old, destination, new, replace=True)
            return Answer(True)
    return Answer(False)


def _attributes(where: Where, _: messages.GetAttributes) -> Answer:
    where.need(Need.LOOK)
    found: dict[str, bytes] = {}
    with tree.opened(READ, where.root, where.path) as fd:
        for name in os.listxattr(fd):
            if name.startswith("user.") and entries.is_text(name):
                try:
                    found[name.removeprefix("user.")] = os.getxattr(fd, name)
                except OSError as error:
                    if error.errno != errno.ENODATA:  # dropped meanwhile
                        raise
    return Answer(found)


def _set_attributes(where: Where, asked: messages.SetAttributes) -> Answer:
    names = [*asked.put, *asked.drop]
    if rules.is_temporary(where.path):
        where.need_temporary()
    else:
        where.need(rules.need_of_attributes(names))
    with tree.opened(READ, where.root, where.path) as fd:
        for name, value in asked.put.items():
            os.setxattr(fd, f"user.{name}", value)
        for name in asked.drop:
            try:
                os.removexattr(fd, f"user.{name}")
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
    return Answer(None)


def _set_times(where: Where, asked: messages.SetTimes) -> Answer:
    where.need(Need.CREATE)
    with tree.opened(READ, where.root, where.path) as fd:
        os.utime(fd, ns=(asked.mtime_ns, asked.mtime_ns))
    return Answer(None)


def _space(where: Where, _: messages.GetSpace) -> Answer:
    where.need(Need.LOOK)
    with tree.opened(DIRECTORY, where.root, where.path) as fd:
        return Answer(space.space(fd))


def _sweep(where: Where, asked: messages.Sweep) -> Answer:
    where.need(Need.CREATE)
    return Answer(tree.sweep(where.root, where.path, max(asked.older_s, 0.0)))
