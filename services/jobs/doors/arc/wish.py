"""A job as ARC clients ask for it, whichever language they used, and what the engine is asked in turn. Pure.

The translation refuses what this site does not do and notes what has no meaning here; nothing is dropped
without a word (the notes are shown by ``diagnose/comment``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from edged.config.doors import Arc
from edged.config.jobs import Software
from edged.errors import BadRequest
from services.jobs.model import Description, Gpus, Resources
from services.jobs.policy import software_name

MIB = 1 << 20
Version: TypeAlias = "tuple[tuple[int, int, str], ...]"
PROXY_ENVIRONMENT = "ENV/PROXY"
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*:/", re.IGNORECASE)


@dataclass(slots=True)
class Environment:
    """A runtime environment asked for: a name with or without its version, and how to compare that."""

    name: str
    operator: str = "="
    options: tuple[str, ...] = ()


@dataclass(slots=True)
class Wish:
    """One job. ``memory`` in bytes a slot, times in seconds; ``inputs`` and ``outputs``: name and URL."""

    name: str = ""
    executable: str = ""
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    join: bool = False
    inputs: list[tuple[str, str]] = field(default_factory=list)
    outputs: list[tuple[str, str]] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    slots: int = 1
    slots_per_node: int = 0
    exclusive: bool = False
    memory: int = 0
    cpu_s: int = 0
    wall_s: int = 0
    queue: str = ""
    environments: list[Environment] = field(default_factory=list)
    coprocessor: str = ""
    node_access: set[str] = field(default_factory=set)
    reruns: int = 0
    keep_s: int = 0
    delegation: str = ""
    notes: list[str] = field(default_factory=list)


def description(wish: Wish, source: str, arc: Arc, software: Sequence[Software]) -> Description:
    """What the engine is asked for. Raises BadRequest for what cannot be done here."""
    missing_access = wish.node_access - set(arc.node_access)
    if missing_access:
        raise BadRequest(f"nodes of this site have no {min(missing_access)} network access")
    names, gpus, with_proxy = _environments(wish, arc, software)
    inputs = _inputs(wish)
    fields = {
        "name": wish.name,
        "executable": wish.executable,
        "arguments": wish.arguments,
        "environment": wish.environment,
        "stdin": plain(wish.stdin) or None,
        "stdout": plain(wish.stdout) or ".arc/stdout",
        "stderr": plain(wish.stderr) or ".arc/stderr",
        "join": wish.join or (bool(wish.stdout) and wish.stdout == wish.stderr),
        "inputs": inputs,
        "programs": tuple(name for name in dict.fromkeys(map(plain, wish.programs)) if name in inputs),
        "outputs": _outputs(wish),
        "queue": wish.queue,
        "resources": msgspec.to_builtins(_resources(wish, gpus)),
        "software": names,
        "keep_s": wish.keep_s,
        "reruns": min(wish.reruns, 5),
        "delegation": wish.delegation,
        "credential_in_job": with_proxy,
        "source": _annotated(source, wish.notes),
    }
    try:
        return msgspec.convert(fields, Description)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None


def plain(name: str) -> str:
    """A file name as the engine writes it: relative, without ``./`` and final slash."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name.rstrip("/")


def _inputs(wish: Wish) -> tuple[str, ...]:
    for name, source in wish.inputs:
        if _URL.match(source):
            raise BadRequest(
                f"input {name!r} comes from a URL: this site stages nothing itself; "
                "upload it, or let the job fetch it"
            )
    return tuple(dict.fromkeys(plain(name) for name, _ in wish.inputs))


def _outputs(wish: Wish) -> tuple[str, ...] | None:
    """What the client will fetch; None when it asks for everything (``/``)."""
    for name, target in wish.outputs:
        if _URL.match(target):
            raise BadRequest(
                f"output {name!r} goes to a URL: this site stages nothing itself; "
                "fetch it, or let the job copy it"
            )
    names = [name for name, _ in wish.outputs]
    if any(name in ("/", ".", "./") for name in names):
        return None
    named = [*names, wish.stdout, "" if wish.join else wish.stderr]
    return tuple(dict.fromkeys(plain(name) for name in named if plain(name)))


def _resources(wish: Wish, gpus: Gpus | None) -> Resources:
    """Slots are tasks of one CPU. Without slots per node all stand on one node."""
    nodes = -(-wish.slots // wish.slots_per_node) if wish.slots_per_node else 1
    wall_s = wish.wall_s or -(-wish.cpu_s // max(wish.slots, 1))
    return Resources(
        nodes=nodes,
        tasks=wish.slots,
        memory=wish.memory * -(-wish.slots // nodes),
        walltime_s=wall_s,
        exclusive=wish.exclusive,
        gpus=gpus,
    )


def _environments(
    wish: Wish, arc: Arc, software: Sequence[Software]
) -> tuple[tuple[str, ...], Gpus | None, bool]:
    """Software of the site, GPUs, and whether the job gets the delegated credential."""
    names: list[str] = []
    gpus = _gpus((wish.coprocessor,)) if wish.coprocessor else None
    with_proxy = arc.proxy_always
    for wanted in wish.environments:
        if wanted.name.upper() == arc.gpu_environment.upper():
            gpus = _gpus(wanted.options)
            continue
        own = wanted.name.upper() == PROXY_ENVIRONMENT
        with_proxy = with_proxy or own
        found = _offered(wanted, software)
        if found:
            names.append(found)
        elif not own:
            raise BadRequest(f"runtime environment {wanted.name!r} is not offered here")
        if own and not wish.delegation:
            wish.notes.append(f"{PROXY_ENVIRONMENT} without a delegation: the job has no credential")
    return tuple(dict.fromkeys(names)), gpus, with_proxy


_COMPARISONS: Mapping[str, Callable[[Version, Version], bool]] = {
    "=": lambda has, wants: has == wants,
    "!=": lambda has, wants: has != wants,
    "<": lambda has, wants: has < wants,
    "<=": lambda has, wants: has <= wants,
    ">": lambda has, wants: has > wants,
    ">=": lambda has, wants: has >= wants,
}


def _offered(wanted: Environment, software: Sequence[Software]) -> str:
    """The newest of the site's environments that fits, as the engine names it; or nothing."""
    fitting = [item for item in software if _fits(wanted, item)]
    if not fitting:
        return ""
    best = max(fitting, key=lambda item: _version(item.version))
    return software_name(best.name, best.version)


def _fits(wanted: Environment, item: Software) -> bool:
    """``ROOT``, ``ROOT-6.30`` and ``ROOT/6.30`` name version 6.30 of ROOT."""
    name = wanted.name.lower()
    own = item.name.lower()
    if name == own:
        return wanted.operator in ("=", ">=")
    if not item.version or not name.startswith((f"{own}-", f"{own}/")):
        return False
    return _COMPARISONS[wanted.operator](_version(item.version), _version(name[len(own) + 1 :]))


def _version(text: str) -> Version:
    """Comparable: numbers as numbers, above words."""
    parts = re.findall(r"\d+|[a-z]+", text.lower())
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)


def _gpus(words: Sequence[str]) -> Gpus:
    """``2``, ``h200``, ``h200:2``, ``gpu:h200:2``, ``CUDA``: a kind and a count on each node."""
    count, kind = 1, ""
    for word in (part for text in words for part in re.split(r"[:=\s]+", text) if part):
        if word.isdecimal():
            count = int(word[:6])
        elif word.lower() not in ("gpu", "gpus", "cuda", "gpgpu", "any"):
            kind = word
    try:
        return msgspec.convert({"count": count, "kind": kind}, Gpus)
    except msgspec.ValidationError:
        raise BadRequest(f"not a GPU request: {' '.join(words)[:64]!r}") from None


NOTES = "\n\x1enotes\n"


def _annotated(source: str, notes: Sequence[str]) -> str:
    return source + NOTES + "\n".join(notes) if notes else source


def split_source(source: str) -> tuple[str, str]:
    """The text as it was sent, and the notes made on it."""
    text, _, notes = source.partition(NOTES)
    return text, notes
