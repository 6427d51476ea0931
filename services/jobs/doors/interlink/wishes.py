"""Annotations that interLink's Slurm plugin reads, each against the site's allow-list. Pure.

Some carry shell text or raw options. Nothing of them reaches a shell or sbatch as it is: options are
taken apart, looked up in a list, and edged builds its own words from their values.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edged.config.doors import InterLink
from edged.errors import BadRequest, Denied
from edged.logs import get_logger
from services.jobs.doors.interlink.pods import Pod
from services.jobs.doors.interlink.volumes import PlannedMount, allowed_host, check_target

log = get_logger("edged.jobs.interlink")

PREFIXES = ("slurm-job.vk.io/", "slurm-job.knoc.io/")
SHORT = {
    "-t": "time", "-c": "cpus-per-task", "-N": "nodes", "-n": "ntasks", "-p": "partition", "-G": "gpus",
    "-J": "job-name",
}  # fmt: skip
SWITCHES = frozenset({"exclusive"})
_PLAIN = re.compile(r"[A-Za-z0-9_.,:=/+@-]{1,256}")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the annotations ask for, all of it allowed. ``binds`` have the node's path as ``volume``."""

    flags: Mapping[str, str]
    flavor: str
    mpi: tuple[str, ...]
    pre_exec: str
    options: tuple[str, ...]
    binds: tuple[PlannedMount, ...]
    image_root: str


def read(pod: Pod, config: InterLink, *, pre_exec: bool) -> Wishes:
    """Read them all. Raises BadRequest and Denied, naming what is not allowed."""
    said = {
        key.removeprefix(prefix): value
        for prefix in reversed(PREFIXES)
        for key, value in pod.annotations.items()
        if key.startswith(prefix)
    }
    before = said.get("pre-exec", "").strip()
    if before and not pre_exec:
        raise Denied("the site does not run pre-exec commands of these pods")
    if "interlink.eu/wstunnel-client-commands" in pod.annotations:
        log.info("wstunnel commands of a pod not run", extra={"pod": pod.metadata.uid})
    kind = config.runtime.kind
    options = said.get("singularity-options", "") if kind == "apptainer" else said.get(f"{kind}-options", "")
    binds = said.get("singularity-mounts", "") if kind == "apptainer" else said.get(f"{kind}-mounts", "")
    return Wishes(
        flags=_flags(said.get("flags", ""), config.flags),
        flavor=said.get("flavor", said.get("flavour", "")).strip(),
        mpi=_listed(_words(said.get("mpi-flags", ""), "mpi-flags"), config.mpi_flags, "mpi-flags"),
        pre_exec=before,
        options=_listed(_words(options, "options"), config.runtime.options, "container option"),
        binds=tuple(_binds(_words(binds, "mounts"), config.host_paths)),
        image_root=said.get("image-root", "").strip(),
    )


def _words(text: str, what: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadRequest(f"annotation {what}: {error}") from None
    for word in words:
        if not _PLAIN.fullmatch(word):
            raise BadRequest(f"annotation {what}: not a plain word: {word[:64]!r}")
    return words


def _flags(text: str, allowed: Sequence[str]) -> dict[str, str]:
    """sbatch's options: ``--name=value``, ``--name value``, ``-n value``, ``-n4``."""
    words = iter(_words(text, "flags"))
    found: dict[str, str] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        else:
            name, equals, value = SHORT.get(word[:2], ""), word[2:3], word[2:].removeprefix("=")
        if name not in allowed:
            raise Denied(f"the site does not take sbatch option {word.partition('=')[0][:64]!r} from pods")
        if not equals and name not in SWITCHES:
            value = next(words, "")
        if not value and name not in SWITCHES:
            raise BadRequest(f"sbatch option {word[:64]!r} without a value")
        found[name] = value
    return found


def _listed(words: Sequence[str], allowed: Sequence[str], what: str) -> tuple[str, ...]:
    """Options of the list with their values, which are words that do not begin with a dash."""
    for index, word in enumerate(words):
        if word.startswith("-"):
            if word.partition("=")[0] not in allowed:
                raise Denied(f"the site does not take {what} {word[:64]!r} from pods")
        elif index == 0:
            raise BadRequest(f"{what}: an option was expected, not {word[:64]!r}")
    return tuple(words)


def _binds(words: Iterable[str], allowed: Sequence[str]) -> Iterable[PlannedMount]:
    """``--bind /a:/b:ro,/c``: each source beneath the site's host paths."""
    for word in words:
        if word in ("--bind", "-B", "--mount"):
            continue
        for part in word.removeprefix("--bind=").split(","):
            source, _, rest = part.partition(":")
            target, _, mode = rest.partition(":")
            if mode not in ("", "ro", "rw"):
                raise BadRequest(f"mounts: not a mode: {mode[:16]!r}")
            yield PlannedMount(
                allowed_host(source, allowed), check_target(target or source), "", mode == "ro"
            )
