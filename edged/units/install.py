"""Putting the units where systemd looks: changed files are written, those of an earlier version removed."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edged.config import Config
from edged.errors import ConfigError
from edged.units import site

MARK = "# Written by `edged units`: your own changes belong in another drop-in (systemctl edit).\n"
PREFIX = "/opt/edged/current"  # as the shipped units name the installation
_INSTANCE = re.compile(r"@.*\.")  # edged-xrootd@NAME.service has its settings from edged-xrootd@.service
PLACES = {"system": "etc/systemd/system", "sysusers.d": "etc/sysusers.d", "tmpfiles.d": "etc/tmpfiles.d"}


@dataclass(frozen=True, slots=True)
class Change:
    """One file: ``before`` or ``after`` is None where there is none."""

    path: Path
    before: str | None
    after: str | None

    def diff(self) -> Iterator[str]:
        """Lines of a unified diff."""
        old, new = ((text or "").splitlines(keepends=True) for text in (self.before, self.after))
        return difflib.unified_diff(old, new, str(self.path), str(self.path))


def shipped() -> Path:
    """The directory of the units that came with this edged. Raises ConfigError."""
    installed = Path(sys.prefix) / "share/edged/systemd"
    for place in (Path(__file__).parents[2] / "systemd", installed):  # a source tree's own go first
        if (place / "edged.target").is_file():
            return place
    raise ConfigError([f"the units are missing from this installation: no {installed}"])


def files(config: Config, prefix: str = PREFIX) -> dict[Path, str]:
    """Path below the root → text, of everything this configuration needs. Raises ConfigError."""
    found: dict[Path, str] = {}
    for file in sorted(shipped().rglob("*")):
        if file.is_file() and (file.parent.name in PLACES or file.name.startswith("edged")):
            place = PLACES.get(file.parent.name, PLACES["system"])
            found[Path(place) / file.name] = MARK + file.read_text().replace(PREFIX, prefix)
    for name, text in site.drop_ins(config).items():
        found[Path(PLACES["system"]) / name] = MARK + text
    return found


def changes(wanted: Mapping[Path, str], root: Path) -> list[Change]:
    """What differs below ``root``, and files of ours that are wanted no more."""
    found = [
        Change(root / path, before, text)
        for path, text in sorted(wanted.items())
        if (before := _content(root / path)) != text
    ]
    stale = (path for path in sorted(_ours(root)) if path.relative_to(root) not in wanted)
    return [*found, *(Change(path, path.read_text(), None) for path in stale)]


def apply(changes: list[Change]) -> None:
    """Write and remove; readable by all, as systemd's own files are."""
    for change in changes:
        if change.after is None:
            change.path.unlink(missing_ok=True)
            if change.path.parent.suffix == ".d" and not any(change.path.parent.iterdir()):
                change.path.parent.rmdir()
            continue
        change.path.parent.mkdir(parents=True, exist_ok=True)
        partial = change.path.with_name(f".{change.path.name}.new")
        partial.write_text(change.after)
        partial.chmod(0o644)
        partial.replace(change.path)


def moved(changes: list[Change]) -> list[str]:
    """Files of sockets whose settings change: an open listener cannot take them, it has to be made anew."""
    sockets = [change for change in changes if ".socket" in str(change.path) and change.before is not None]
    return [str(change.path) for change in sockets if _settings(change.before) != _settings(change.after)]


def altered(changes: list[Change], units: Iterable[str]) -> list[str]:
    """Those of ``units`` that were there before and have other settings now, by their own files or their template's."""
    touched = {
        change.path.parent.name.removesuffix(".d") if change.path.suffix == ".conf" else change.path.name
        for change in changes
        if change.before is not None and _settings(change.before) != _settings(change.after)
    }
    return [unit for unit in units if unit in touched or _INSTANCE.sub("@.", unit) in touched]


def _settings(text: str | None) -> list[str]:
    lines = (text or "").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def running_now(root: Path) -> list[str]:
    """The units that edged.target was told to bring up, before a change."""
    target = root / PLACES["system"] / f"edged.target.d/{site.DROP_IN}"
    lines = (_content(target) or "").splitlines()
    return [line.removeprefix("Wants=") for line in lines if line.startswith("Wants=")]


def _ours(root: Path) -> Iterator[Path]:
    for place in PLACES.values():
        for pattern in ("edged*", "edged*.d/*.conf"):
            for path in (root / place).glob(pattern):
                if path.is_file() and not path.is_symlink() and (_content(path) or "").startswith(MARK):
                    yield path


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
