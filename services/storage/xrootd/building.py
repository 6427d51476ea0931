"""Compiling edged's libraries against the server that is installed here."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from edged.errors import Unavailable
from services.storage.xrootd import forwarding, installation

HERE = Path(__file__).parent
HEADERS = (Path("/usr/include/xrootd"), Path(sysconfig.get_path("include")).parent / "xrootd")
COMPILE_S = 180.0


def compiler() -> str:
    """The C++ compiler. Raises Unavailable."""
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        raise Unavailable("no C++ compiler: install g++")
    return found


def headers() -> Path:
    """The server's headers. Raises Unavailable."""
    for place in HEADERS:
        if (place / "XrdAcc" / "XrdAccAuthorize.hh").exists():
            return place
    raise Unavailable("no headers of the server: install libxrootd-server-dev (RPM: xrootd-server-devel)")


def argv(target: Path, sources: Iterable[str]) -> list[str]:
    """The compiler's command. Raises Unavailable."""
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wl,-z,relro,-z,now"]
    return [compiler(), *flags, f"-I{headers()}", "-o", str(target), *(str(HERE / name) for name in sources)]


def build(gate: Path, server: Path) -> str:
    """Make the gate, and the proxy's library beside it, replacing what is there. Raises Unavailable.

    The version of ``server``, the xrootd it is for, is returned, and kept beside with what it was built from.
    """
    version = installation.shown(installation.ask_version(server))
    _build(gate, "edged_gate.cc", "edged_forward.cc")
    _build(forwarding.library(gate), "edged_way.cc")
    _note(gate).write_text(_origin(version))
    return version


def current(gate: Path, version: str) -> bool:
    """Whether what is there was built from this edged's sources for that server."""
    built = all(file.exists() for file in (gate, forwarding.library(gate), _note(gate)))
    return built and _note(gate).read_text() == _origin(version)


def _note(gate: Path) -> Path:
    return gate.with_suffix(".built")


def _origin(version: str) -> str:
    sources = sorted(file for file in HERE.iterdir() if file.suffix in {".cc", ".h"})
    content = b"\0".join(file.read_bytes() for file in sources)
    return f"{version} {sha256(content).hexdigest()}\n"


def _build(target: Path, *sources: str) -> None:
    partial = target.with_name(f".{target.name}.new")
    command = argv(partial, sources)
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S, check=False)
        if done.returncode != 0:
            raise Unavailable(f"{target.name} does not compile", detail=done.stderr[-2000:])
        partial.chmod(0o755)
        partial.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{target.name} cannot be built", detail=str(error)) from error
    finally:
        partial.unlink(missing_ok=True)
