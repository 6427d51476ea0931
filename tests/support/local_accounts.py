"""Local service accounts that tests become: cmsprd, atlprd and pilot1, made once when missing (root only)."""

from __future__ import annotations

import fcntl
import grp
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LocalAccount:
    """A local account; ``group`` is also the name of its Slurm account."""

    name: str
    group: str
    uid: int


CMSPRD = LocalAccount("cmsprd", "cms", 20001)
ATLPRD = LocalAccount("atlprd", "atlas", 20002)
PILOT1 = LocalAccount("pilot1", "ops", 20003)
ACCOUNTS = (CMSPRD, ATLPRD, PILOT1)

_LOCK = Path("/tmp/edged-tests-accounts.lock")


def ensure(accounts: tuple[LocalAccount, ...] = ACCOUNTS) -> None:
    """Make the accounts that do not exist. Safe when several test runs do it at once."""
    if all(_exists(account) for account in accounts):
        return
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for account in accounts:
            if not _has_group(account):
                _run("groupadd", "-g", str(account.uid), account.group)
            if not _exists(account):
                home = f"/home/{account.name}"
                # '*' and not no password at all: sshd calls the latter locked
                _run("useradd", "-u", str(account.uid), "-g", account.group, "-m", "-d", home,
                     "-s", "/bin/bash", "-p", "*", account.name)  # fmt: skip


def _exists(account: LocalAccount) -> bool:
    try:
        pwd.getpwnam(account.name)
    except KeyError:
        return False
    return True


def _has_group(account: LocalAccount) -> bool:
    try:
        grp.getgrnam(account.group)
    except KeyError:
        return False
    return True


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
