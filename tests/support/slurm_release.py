"""Another Slurm than the host's: the packages of another Debian release, seen in place of the host's /usr.

A program started ``inside`` a release has its own mount namespace, in which the release's /usr lies over the
host's; all else (/etc, /tmp, /home, /proc) is the host's. So two releases run side by side, nothing is
installed, and nothing has to be unmounted when a test is killed.

The packages come by apt from the archive the host itself uses, once, and are kept between runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.support import rootfs
from tests.support.rootfs import CannotBuild

SLURM = ("slurmctld", "slurmd", "slurmdbd", "slurmrestd", "slurm-client", "slurm-wlm-basic-plugins",
         "slurm-wlm-jwt-plugin", "slurm-wlm-mysql-plugin")  # fmt: skip
# what a login node and a job's script need beside it; slurmd asks su for the login environment (--export=NONE)
BASE = ("bash", "coreutils", "dash", "grep", "hostname", "libc-bin", "openssh-server", "openssh-sftp-server", "procps",
        "python3", "sed", "util-linux")  # fmt: skip
TRIM = ("share/doc", "share/locale", "share/man", "share/perl", "include")
FETCH_S = 600.0

_OVER = 'mount --bind "$0" /usr && exec "$@"'


@dataclass(frozen=True, slots=True)
class Release:
    """A release whose packages are here. ``usr``: what takes the place of /usr."""

    name: str
    usr: Path

    def inside(self, argv: Sequence[str], user: str | None = None, group: str | None = None) -> list[str]:
        """``argv`` as root starts it: the same process becomes it, as ``user``."""
        space = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _OVER, str(self.usr)]
        who = ["/usr/sbin/chroot", f"--userspec={user}:{group or user}", "--groups=", "/"] if user else []
        return [*space, *who, *argv]

    def version(self) -> str:
        """Slurm's own, e.g. ``24.11.5``."""
        told = subprocess.run(self.inside(["slurmctld", "-V"]), capture_output=True, text=True, check=True)
        return told.stdout.split()[-1]


def release(name: str) -> Release:
    """The release called ``name`` (``trixie``, ``sid``), fetched when it is not here. Raises CannotBuild."""
    key = sha256(" ".join((*SLURM, *BASE, *TRIM)).encode()).hexdigest()[:12]
    place = rootfs.cache_directory() / f"slurm-{name}-{key}"
    with rootfs.one_builder(f"slurm-{name}"):
        if not place.exists():
            _make(name, place)
    return Release(name, place / "usr")


def _make(name: str, place: Path) -> None:
    if os.geteuid() != 0:
        raise CannotBuild("mounting another /usr needs root")
    scratch = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        for debian in _fetched(name, scratch / "apt"):
            rootfs.run(["dpkg-deb", "--extract", str(debian), str(scratch)], 120.0)
        for part in TRIM:
            shutil.rmtree(scratch / "usr" / part, ignore_errors=True)
        for program in (*(scratch / "usr/bin").glob("*-wlm"), *(scratch / "usr/sbin").glob("*-wlm")):
            program.with_name(program.name.removesuffix("-wlm")).symlink_to(program.name)
        place.mkdir()
        (scratch / "usr").rename(place / "usr")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetched(name: str, apt: Path) -> list[Path]:
    """The packages with all they depend on, of this release alone."""
    for folder in ("lists/partial", "cache/archives/partial", "trusted"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources").write_text(f"deb [signed-by={keys}] {rootfs.mirror()} {name} main\n")
    settings = {
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::SourceList": apt / "sources",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    rootfs.run(["apt-get", *options, "-qq", "update"], FETCH_S)
    rootfs.run(["apt-get", *options, "-qq", "-y", "--download-only", "install", *SLURM, *BASE], FETCH_S)
    return sorted((apt / "cache/archives").glob("*.deb"))
