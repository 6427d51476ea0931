"""Whether a login node shows the key that is pinned: found out without any credential."""

from __future__ import annotations

import asyncio

import asyncssh

from edged.config.batch import SshCluster
from services.jobs.batch.ssh.logins import Node, trusted

SHOWN_S = (
    4.0  # a key is shown before any login shell runs; `edged doctor` leaves the logins the rest of its time
)


async def trouble(cluster: SshCluster, node: Node, account: str) -> str | None:
    """What is wrong with the way to ``node``, in words; None: it is a login node with the right host key.

    ``account``: asked for and not let in. One that exists: sshd penalizes addresses that try others (since 9.8).
    Raises ConfigError for keys that are none.
    """
    known, limit_s = trusted(cluster), min(SHOWN_S, cluster.connect_s)
    try:
        async with asyncio.timeout(limit_s):
            connection = await asyncssh.connect(
                node.host,
                node.port,
                username=account,
                client_keys=None,
                known_hosts=known,
                config=None,
                agent_path=None,
                gss_host=None,
                password_auth=False,
                kbdint_auth=False,
                x509_trusted_certs=None,
                x509_trusted_cert_paths=[],
            )
    except asyncssh.PermissionDenied:  # after the host key was taken for right
        return None
    except asyncssh.HostKeyNotVerifiable:
        return "its host key is not the pinned one"
    except TimeoutError:
        return f"no login within {limit_s:g} s"
    except (OSError, asyncssh.Error) as error:
        return str(error)
    connection.abort()
    return "lets anybody in: it asks for no credential"
