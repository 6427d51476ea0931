"""``python -m edged.accounts [CONFIG]``: accountd as its own unit. `edged run` starts it with ``--child``."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edged import logs, systemd
from edged.accounts import start
from edged.accounts.settings import Settings, settings_of
from edged.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from edged.config import Config


def main(config: Config) -> None:
    """Serve until SIGTERM; systemd restarts us, so there is no keeper. Raises ConfigError."""
    logs.setup(level=config.log.level, form=config.log.format, audit_file=config.log.audit_file)
    if config.accounts.mode != "accountd" or os.geteuid() != 0:
        raise ConfigError(["accounts.mode: the accountd unit runs as root, with mode = 'accountd'"])
    ours, _never_closed = os.pipe()
    start.serve(settings_of(config, one_process=False), ours, None, inherited=_inherited())


def _inherited() -> socket.socket | None:
    """systemd's listener: a front that calls while we restart waits in it and is not refused."""
    found = systemd.inherited_sockets().get("accountd")
    return found[0] if found else None


def child(lifeline: int, ready: int, facts: int, level: str, audit_file: str) -> None:
    """What `edged run` starts; see ``start.start_accountd``."""
    os.environ.pop("NOTIFY_SOCKET", None)  # the unit is our parent, who says itself when it is ready
    logs.setup(level=level, audit_file=Path(audit_file) if audit_file else None)
    with open(facts, "rb") as file:
        settings = msgspec.msgpack.decode(file.read(), type=Settings)
    start.keep(settings, lifeline, ready)


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--child"]:
            child(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:7])
        else:
            from edged.config import DEFAULT_FILE, load

            main(load(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE))
    except ConfigError as error:
        sys.exit("\n".join(f"edged: {problem}" for problem in error.problems))
    except EdgeError as error:
        sys.exit(f"edged: {error}")
