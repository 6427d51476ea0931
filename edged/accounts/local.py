"""Local accounts and the directories that accountd makes for them."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from edged.accounts.privileges import Account
from edged.errors import Denied, Unavailable


def find(name: str, minimum_uid: int) -> Account:
    """The account, with the groups initgroups(3) would give it. Raises Denied below ``minimum_uid``."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise Denied("no such account on this machine", detail=name) from None
    if entry.pw_uid < max(minimum_uid, 1) or entry.pw_gid == 0:
        raise Denied(
            "account below the minimum uid", detail=f"{name} is uid {entry.pw_uid}, gid {entry.pw_gid}"
        )
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    if 0 in groups:
        raise Denied("account is a member of root's group", detail=name)
    return Account(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


def own() -> Account:
    """The caller itself, for self mode."""
    try:
        entry = pwd.getpwuid(os.getuid())
        name, home = entry.pw_name, entry.pw_dir
    except KeyError:
        name, home = f"uid{os.getuid()}", "/"
    return Account(name, os.getuid(), os.getgid(), tuple(os.getgroups()), home)


def make_directory(parent: str, account: Account) -> str:
    """``parent/<account>``, mode 0700, owned by the account. Raises Unavailable when it cannot be had.

    Where root may not write (NFS with root_squash) the site makes it beforehand. ``parent`` must be
    closed to others, else somebody could put a link there before us.
    """
    try:
        Path(parent).mkdir(mode=0o755, parents=True, exist_ok=True)
        above = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"no directory for {account.name}", detail=f"{parent}: {error}") from error
    try:
        return _make_below(above, parent, account)
    finally:
        os.close(above)


def _make_below(above: int, parent: str, account: Account) -> str:
    facts = os.fstat(above)
    if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unavailable(f"{parent} must be writable by its owner only", detail=oct(facts.st_mode))
    path = f"{parent}/{account.name}"
    try:
        os.mkdir(account.name, 0o700, dir_fd=above)
        os.chown(account.name, account.uid, account.gid, dir_fd=above, follow_symlinks=False)
    except FileExistsError:
        pass
    except OSError as error:
        raise Unavailable(f"no directory for {account.name}", detail=f"{path}: {error}") from error
    there = os.stat(account.name, dir_fd=above, follow_symlinks=False)
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != account.uid:
        raise Unavailable(f"{path} is not {account.name}'s directory")
    return path
