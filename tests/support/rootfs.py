"""A Debian root file system to boot: made once by debootstrap, kept packed between runs.

It takes the packages of the host's own release from the host's own apt sources. The archive is named
by what is in it, so a changed list of packages makes another.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "libnss-systemd",  # without it a user of DynamicUser= has no name
    "python3",
    "python3-venv",
    "python3-apt",
    "ca-certificates",
    "curl",
    "iproute2",
    "procps",
    "logrotate",
    "nftables",
)
TRIM = ("var/cache/apt", "var/lib/apt/lists", "usr/share/locale", "usr/share/doc", "usr/share/man")
BUILD_S = 900.0
ARCHIVE = re.compile(r"https?://\S+")


class CannotBuild(Exception):
    """Why this machine cannot make or keep a root file system."""


def cache_directory() -> Path:
    """Where things that cost minutes are kept between runs: /var/cache for root, else the XDG cache."""
    xdg = os.environ.get("XDG_CACHE_HOME")
    base = Path(xdg) if xdg else Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
    directory = base / "edged-tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def one_builder(name: str) -> Iterator[None]:
    """Two test runs at once must not build the same thing."""
    with (cache_directory() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def archive() -> Path:
    """The packed root file system, made when it is not there yet. Raises CannotBuild."""
    release = _release()
    key = hashlib.sha256(" ".join((release, *PACKAGES, *TRIM)).encode()).hexdigest()[:12]
    packed = cache_directory() / f"rootfs-{release}-{key}.tar.zst"
    with one_builder("rootfs"):
        if not packed.exists():
            _make(release, packed)
    return packed


def unpack(into: Path) -> None:
    """A fresh copy below ``into``, about a second. Raises CannotBuild."""
    into.mkdir(parents=True, exist_ok=True)
    command = ["tar", "--numeric-owner", "--xattrs", "--use-compress-program=zstd", "-xf", str(archive())]
    run([*command, "-C", str(into)], 120.0)


def _make(release: str, packed: Path) -> None:
    for tool, package in (("debootstrap", "debootstrap"), ("zstd", "zstd")):
        if shutil.which(tool) is None:
            raise CannotBuild(f"{tool} is missing: apt-get install {package}")
    scratch = packed.with_name(f".build-{os.getpid()}")
    try:
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        run([*command, release, str(scratch), mirror()], BUILD_S)
        _trim(scratch)
        partial = packed.with_suffix(".partial")
        tar = ["tar", "-C", str(scratch), "--numeric-owner", "--xattrs", "--use-compress-program=zstd -T0 -3"]
        run([*tar, "-cf", str(partial), "."], 300.0)
        partial.rename(packed)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _trim(root: Path) -> None:
    for part in TRIM:
        shutil.rmtree(root / part, ignore_errors=True)
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "etc/machine-id").write_text("")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").touch()  # one that cannot be reached costs Ansible 10 s a run


def _release() -> str:
    try:
        told = platform.freedesktop_os_release()
    except OSError as error:
        raise CannotBuild(f"this machine's release is not known: {error}") from error
    name = told.get("VERSION_CODENAME", "")
    if told.get("ID") != "debian" or not name:
        raise CannotBuild(f"only a Debian host's own release is built, this is {told.get('PRETTY_NAME')}")
    return name


def mirror() -> str:
    """The archive the host itself uses."""
    apt = Path("/etc/apt")
    for file in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        if not file.is_file():
            continue
        for line in file.read_text(errors="replace").splitlines():
            found = ARCHIVE.search(line)
            if found and not line.lstrip().startswith("#") and found[0].rstrip("/").endswith("/debian"):
                return found[0]
    raise CannotBuild("this machine's apt sources name no Debian archive")


def run(command: list[str], limit_s: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode != 0:
        raise CannotBuild(f"{command[0]} failed: {(done.stderr or done.stdout)[-1500:]}")
