"""What each xRSL attribute wishes for (ARC's xRSL reference). Pure.

Attributes that only steer the client or publish nothing a site could act on are noted; those that would
change what runs, and those nobody knows, are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edged.errors import BadRequest, EdgeError
from services.jobs.doors.arc import xrsl
from services.jobs.doors.arc.times import seconds
from services.jobs.doors.arc.wish import MIB, Environment, Wish
from services.jobs.doors.arc.xrsl import Relation

_REPEATED = frozenset({"runtimeenvironment", "architecture", "opsys", "cluster", "queue", "middleware"})
_IGNORED = frozenset(
    {"acl", "action", "architecture", "cache", "clientsoftware", "clientxrsl", "cluster", "credentialserver"}
    | {
        "disk",
        "ftpthreads",
        "gmlog",
        "hostname",
        "jobid",
        "jobreport",
        "lrmstype",
        "middleware",
        "notify",
        "opsys",
    }
    | {"priority", "replicacollection", "savestate"}
)


def wishes(text: str) -> list[Wish | EdgeError]:
    """One outcome for each job in the text. Raises BadRequest when the text itself cannot be read."""
    return [_tried(job) for job in xrsl.read(text)]


def _tried(job: xrsl.Job) -> Wish | EdgeError:
    try:
        return _wish(job)
    except EdgeError as error:
        return error


def _wish(job: xrsl.Job) -> Wish:
    wish = Wish()
    seen: set[str] = set()
    for relation in job:
        name = relation.attribute
        if name in seen and name not in _REPEATED:
            raise BadRequest(f"{name}: given twice")
        seen.add(name)
        if name in _IGNORED:
            wish.notes.append(f"xRSL {name}: no meaning here")
            continue
        take = _TAKE.get(name)
        if take is None:
            raise BadRequest(f"{name}: this site does not know the attribute")
        if relation.operator != "=" and name not in ("runtimeenvironment", "queue"):
            raise BadRequest(f"{name}: only = is possible")
        take(wish, relation)
    if not wish.executable:
        raise BadRequest("executable: missing")
    return wish


def _text(field: str) -> Callable[[Wish, Relation], None]:
    return lambda wish, relation: setattr(wish, field, relation.word())


def _number(field: str, unit: int = 1) -> Callable[[Wish, Relation], None]:
    def take(wish: Wish, relation: Relation) -> None:
        word = relation.word()
        if not word.isdecimal() or len(word) > 12:
            raise BadRequest(f"{relation.attribute}: not a number: {word[:32]!r}")
        setattr(wish, field, int(word) * unit)

    return take


def _time(field: str, unit_s: int) -> Callable[[Wish, Relation], None]:
    return lambda wish, relation: setattr(wish, field, seconds(relation.words(), unit_s))


def _flag(field: str) -> Callable[[Wish, Relation], None]:
    return lambda wish, relation: setattr(wish, field, _yes(relation))


def _yes(relation: Relation) -> bool:
    word = relation.word().lower()
    if word not in ("yes", "no", "true", "false"):
        raise BadRequest(f"{relation.attribute}: yes or no")
    return word in ("yes", "true")


def _arguments(wish: Wish, relation: Relation) -> None:
    wish.arguments = relation.words()


def _environment(wish: Wish, relation: Relation) -> None:
    for row in relation.rows():
        if len(row) != 2:
            raise BadRequest("environment: takes (NAME value) each")
        wish.environment[row[0]] = row[1]


def _files(field: str) -> Callable[[Wish, Relation], None]:
    def take(wish: Wish, relation: Relation) -> None:
        found = getattr(wish, field)
        for row in relation.rows():
            if not row or not row[0]:
                raise BadRequest(f"{relation.attribute}: takes (name source) each")
            found.append((row[0], row[1] if len(row) > 1 else ""))

    return take


def _programs(wish: Wish, relation: Relation) -> None:
    wish.programs.extend(relation.words())


def _runtime(wish: Wish, relation: Relation) -> None:
    name, *options = relation.words() or ("",)
    if not name:
        raise BadRequest("runtimeenvironment: takes a name")
    wish.environments.append(Environment(name.strip(), relation.operator, tuple(options)))


def _queue(wish: Wish, relation: Relation) -> None:
    if relation.operator != "=":
        wish.notes.append(f"xRSL queue {relation.operator} {relation.word()}: the site chooses")
        return
    if wish.queue:
        raise BadRequest("queue: given twice")
    wish.queue = relation.word()


def _access(wish: Wish, relation: Relation) -> None:
    words = {word.lower() for word in relation.words()}
    if not words <= {"inbound", "outbound"}:
        raise BadRequest("nodeaccess: inbound or outbound")
    wish.node_access |= words


def _dry(_wish: Wish, relation: Relation) -> None:
    if _yes(relation):
        raise BadRequest("dryrun: not supported")


def _refused(instead: str) -> Callable[[Wish, Relation], None]:
    def take(_wish: Wish, relation: Relation) -> None:
        raise BadRequest(f"{relation.attribute}: not supported; {instead}")

    return take


_TAKE: Mapping[str, Callable[[Wish, Relation], None]] = {
    "executable": _text("executable"),
    "arguments": _arguments,
    "environment": _environment,
    "stdin": _text("stdin"),
    "stdout": _text("stdout"),
    "stderr": _text("stderr"),
    "join": _flag("join"),
    "inputfiles": _files("inputs"),
    "outputfiles": _files("outputs"),
    "executables": _programs,
    "jobname": _text("name"),
    "count": _number("slots"),
    "countpernode": _number("slots_per_node"),
    "exclusiveexecution": _flag("exclusive"),
    "memory": _number("memory", MIB),
    "cputime": _time("cpu_s", 60),
    "walltime": _time("wall_s", 60),
    "lifetime": _time("keep_s", 86400),
    "rerun": _number("reruns"),
    "queue": _queue,
    "runtimeenvironment": _runtime,
    "nodeaccess": _access,
    "delegationid": _text("delegation"),
    "dryrun": _dry,
    "gridtime": _refused("give cpuTime or wallTime"),
    "benchmarks": _refused("give cpuTime or wallTime"),
    "starttime": _refused("submit it when it may start"),
    "rsl_substitution": _refused("write the text out"),
}
