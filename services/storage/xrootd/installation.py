"""What is installed: asked of the binaries, not assumed."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edged.config.xrootd import Xrootd
from edged.errors import Unavailable

SUPPORTED = (5, 6)
LIBRARIES = ("/usr/lib64", "/usr/lib", "/usr/local/lib", "/usr/local/lib64")
PLUGINS = {
    "SecProt": "xrootd-plugins",
    "Secztn": "xrootd-plugins",
    "AccSciTokens": "xrootd-scitokens-plugins",
}
ASK_S = 10.0


@dataclass(frozen=True, slots=True)
class Installation:
    """An xrootd that can serve us. ``multiuser`` is the plugin's file, where it is installed."""

    version: tuple[int, ...]
    programs: Path
    gate: Path
    multiuser: Path | None = None

    @property
    def shown(self) -> str:
        """The version as upstream writes it."""
        return shown(self.version)


def shown(version: tuple[int, ...]) -> str:
    """A version as upstream writes it."""
    return "v" + ".".join(map(str, version))


def look(settings: Xrootd) -> Installation:
    """The installation here. Raises Unavailable with what to install."""
    version = ask_version(settings.bin / "xrootd")
    if version[0] not in range(SUPPORTED[0], SUPPORTED[1] + 1) or version < (5, 5):
        raise Unavailable(f"xrootd {version[0]}.{version[1]} is not supported: 5.5 to 6.x are")
    if not (settings.bin / "cmsd").exists():
        raise Unavailable(f"no cmsd in {settings.bin}: install the package xrootd-server")
    for plugin, package in PLUGINS.items():
        if library(f"libXrd{plugin}-{version[0]}.so") is None:
            raise Unavailable(f"xrootd's plugin {plugin} is missing: install the package {package}")
    return Installation(version, settings.bin, settings.gate, library(f"libXrdMultiuser-{version[0]}.so"))


def ask_version(program: Path) -> tuple[int, ...]:
    """``xrootd -v`` says ``v5.5.3`` (on stderr). Raises Unavailable."""
    try:
        done = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(
            f"no {program.name} in {program.parent}: install the package xrootd-server", detail=str(error)
        ) from error
    return parse_version(done.stdout + done.stderr)


def parse_version(said: str) -> tuple[int, ...]:
    """The first ``v1.2.3`` in it. Raises Unavailable."""
    match = re.search(r"\bv(\d+)\.(\d+)(?:\.(\d+))?", said)
    if match is None:
        raise Unavailable("xrootd does not tell its version", detail=said[:200])
    return tuple(int(part) for part in match.groups("0"))


def library(name: str) -> Path | None:
    """A shared library where the loader looks."""
    for place in map(Path, LIBRARIES):
        found = next(
            (file for file in (place / name, *place.glob(f"*-linux-gnu*/{name}")) if file.exists()), None
        )
        if found is not None:
            return found
    return None
