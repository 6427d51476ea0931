"""A login node: a real sshd on a loopback port, with host keys, CA and settings of its own.

with Sshd(directory, authority=line) as node: ... node.port, node.host_key ...
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.support import local_accounts
from tests.support.daemons import Daemon
from tests.support.netns import Namespace
from tests.support.slurm_release import Release
from tests.support.waiting import until

SSHD = "/usr/sbin/sshd"


def missing() -> str | None:
    """Why no login node can run here, or None."""
    if os.geteuid() != 0:
        return "a login node for several accounts needs root"
    return None if Path(SSHD).exists() else "openssh-server is not installed"


class Sshd:
    """One login node. ``authority``: the SSH CA it trusts; ``settings``: more lines of sshd_config.

    ``release``: sshd, Python and Slurm's clients of another release. ``space`` and ``address``: listen there.
    """

    def __init__(
        self,
        authority: str = "",
        *,
        environment: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        release: Release | None = None,
        space: Namespace | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="edged-sshd-"))
        self.root.chmod(0o755)
        self.port = _free_port()
        self.address = address
        self._frozen: list[int] = []
        self._authority = authority
        self._environment = {"PATH": "/usr/bin:/bin", **(environment or {})}
        self._settings = {
            "MaxSessions": "10",
            "Subsystem": "sftp /usr/lib/openssh/sftp-server",
            **(settings or {}),
        }
        self.new_host_key()
        argv = [SSHD, "-D", "-e", "-f", str(self.root / "config")]
        argv = release.inside(argv) if release else space.argv(argv) if space else argv
        self.daemon = Daemon("sshd", argv, self.root / "log")

    def __enter__(self) -> Sshd:
        local_accounts.ensure()
        Path("/run/sshd").mkdir(exist_ok=True)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def login(self) -> str:
        """As ``[[jobs.cluster]] login`` writes it."""
        return f"{self.address}:{self.port}"

    @property
    def host_key(self) -> str:
        """As ``[[jobs.cluster]] host_keys`` writes it."""
        return " ".join((self.root / "host.pub").read_text().split()[:2])

    def authorize(self, account: str, public_key: str) -> None:
        """Let ``account`` in with this key."""
        (self.root / f"keys-{account}").write_text(public_key + "\n")

    def certify_host(self, authority: Path, *names: str) -> None:
        """Show a host certificate for ``names``, signed by the key in ``authority``; from the next start on."""
        argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", "host", "-h", "-n", ",".join(names)]
        subprocess.run([*argv, str(self.root / "host.pub")], check=True, timeout=30)
        self._settings["HostCertificate"] = str(self.root / "host-cert.pub")

    def new_host_key(self) -> None:
        """Another host key, from the next start on."""
        for name in ("host", "host.pub"):
            (self.root / name).unlink(missing_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / "host")]
        subprocess.run(argv, check=True, timeout=30)

    def start(self) -> None:
        """Listening when this returns."""
        (self.root / "ca.pub").write_text(self._authority + "\n")
        (self.root / "revoked").touch()
        (self.root / "config").write_text(self._config())
        self.daemon.start()
        until(self._answers, "sshd", 10)

    def trust(self, authority: str) -> None:
        """Trust this SSH CA from now on."""
        self._authority = authority
        self.stop()
        self.start()

    def revoke(self, krl: bytes) -> None:
        """A new revocation list; sshd reads it at each login."""
        (self.root / "revoked").write_bytes(krl)

    def stop(self) -> None:
        """The listener and every session end, as at a reboot."""
        self.thaw()
        self.daemon.stop(5)
        self.cut()

    def sessions(self) -> list[int]:
        """Pids of the session processes of this sshd (and what it left behind)."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "comm").read_text().strip().startswith("sshd") and self._mine(entry):
                    found.append(int(entry.name))
        return [pid for pid in found if pid != (self.daemon.process.pid if self.daemon.process else 0)]

    def _mine(self, entry: Path) -> bool:
        """By the session's socket: the local end has our port."""
        inodes = {os.readlink(link) for link in (entry / "fd").iterdir()}
        return any(f"socket:[{inode}]" in inodes for inode in _inodes(self.port))

    def cut(self) -> None:
        """Every connection breaks at once."""
        for pid in self.sessions():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Connections stay and nothing answers any more."""
        self._frozen = self.sessions()
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on: those that were left meanwhile then notice, and end."""
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    def connections(self) -> int:
        """Logins accepted so far."""
        return len(re.findall(r"^Accepted publickey", self.log(), re.M))

    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self.address, self.port), 1) as probe:
            return probe.recv(4) == b"SSH-"
        return False

    def _config(self) -> str:
        lines = {
            "Port": str(self.port),
            "ListenAddress": self.address,
            "HostKey": str(self.root / "host"),
            "PidFile": "none",
            "UsePAM": "no",
            "AuthorizedKeysFile": str(self.root / "keys-%u"),
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "StrictModes": "no",
            "UseDNS": "no",
            "PrintMotd": "no",
            "AllowUsers": " ".join(account.name for account in local_accounts.ACCOUNTS),
            "SetEnv": " ".join(f"{name}={value}" for name, value in self._environment.items()),
            **self._settings,
        }
        if self._authority:
            lines["TrustedUserCAKeys"] = str(self.root / "ca.pub")
            lines["RevokedKeys"] = str(self.root / "revoked")
        return "".join(f"{key} {value}\n" for key, value in lines.items())


def _inodes(port: int) -> set[str]:
    """Inodes of established sockets whose local end is ``port``."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "01" and int(words[1].rpartition(":")[2], 16) == port:
            found.add(words[9])
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
