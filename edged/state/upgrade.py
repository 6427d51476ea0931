"""``edged state migrate``: every database to this version's schema, each as the user that owns it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from edged import services
from edged.config import Config
from edged.errors import ConfigError
from edged.state import Store

LONGEST_S = 3600.0


def migrate(config: Config, config_file: Path, only: str | None = None) -> Iterator[str]:
    """One line a database: what was applied. Raises ConfigError."""
    for store in services.stores(config):
        if only is not None and store.name != only:
            continue
        owner = _other_owner(store)
        yield _as_owner(store, owner, config_file) if owner else _here(store)


def _here(store: Store) -> str:
    applied = store.prepare()
    return f"{store.name}: applied {', '.join(map(str, applied))}" if applied else f"{store.name}: up to date"


def _other_owner(store: Store) -> pwd.struct_passwd | None:
    """Whom the database's directory belongs to, where we are root and it is not ours."""
    file = store.engine.url.database
    if os.geteuid() != 0 or store.engine.dialect.name != "sqlite" or not file:
        return None
    uid = Path(file).parent.stat().st_uid
    return pwd.getpwuid(uid) if uid != 0 else None


def _as_owner(store: Store, owner: pwd.struct_passwd, config_file: Path) -> str:
    command = [sys.executable, "-P", "-m", "edged", "state", "migrate", "--only", store.name]
    done = subprocess.run(
        [*command, "--config", str(config_file)],
        user=owner.pw_uid,
        group=owner.pw_gid,
        extra_groups=os.getgrouplist(owner.pw_name, owner.pw_gid),
        umask=0o077,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    if done.returncode != 0:
        raise ConfigError([line.removeprefix("edged: ") for line in done.stderr.splitlines()])
    return done.stdout.strip()
