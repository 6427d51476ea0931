"""The addresses to listen on are this machine's. The socket units do not care (FreeBind=): nobody would be heard."""

from __future__ import annotations

import errno
import socket

from edged.config import Config
from edged.config.listeners import listeners
from edged.doctor import Finding

PART = "listener"


async def findings(config: Config) -> list[Finding]:
    """One for each that names an address which is not here; nothing for the others."""
    return [
        Finding(
            PART,
            False,
            f"{path}: {address}: not an address of this machine",
            "`ip address` shows those it has",
        )
        for path, address in listeners(config)
        if not address.startswith("/") and not is_here(address.rpartition(":")[0].strip("[]"))
    ]


def is_here(host: str) -> bool:
    """Whether this machine has the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True
