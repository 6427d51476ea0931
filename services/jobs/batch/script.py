"""The files of a job: what the batch system starts, and what that starts.

Three layers, so that text of a user is never read by a batch system nor by our own shell code:

* the *launcher* goes to the batch system (``sbatch`` reads it on standard input). It has no user text at
  all. It creates the marker exclusively, so that a second copy of the job exits at once;
* ``run.sh`` has the site's lines and the redirections, and writes the outcome down;
* ``payload.sh`` has the user's environment, program and arguments, each quoted. User text that is a script
  stays a file of its own, ``script``.

All of them lie in ``.edged`` in the session directory, and run on nodes with bash and coreutils only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edged.errors import BadRequest

PRIVATE = PurePosixPath(".edged")
LOG = PRIVATE / "batch.log"
MARKER = PRIVATE / "started"
OUTCOME = PRIVATE / "outcome"
RUN = PRIVATE / "run.sh"
PAYLOAD = PRIVATE / "payload.sh"
SCRIPT = PRIVATE / "script"

LATEST = 1 << 33  # Unix seconds: the year 2242
MAX_OUTCOME = 4096  # bytes of it that are read

EXIT_NO_SESSION = 212
EXIT_DUPLICATE = 213

_OUTCOME_LINE = (
    r"""printf 'exit=%s\nstarted=%s\nended=%s\nhost=%s\n' "$code" "$started" "$(date +%s)" "$HOSTNAME" """
    f">{OUTCOME}.new && mv -f {OUTCOME}.new {OUTCOME}"
)

# It may hang in a driver: it has two seconds for its last words. By job number, not by process id, which
# another process may have by now.
_END_BESIDE = (
    '{ kill %1; for _ in {1..20}; do [ -n "$(jobs -r)" ] || break; sleep 0.1; done; kill -9 %1; } 2>/dev/null'
)

Files = Mapping[str, tuple[bytes, int]]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# what would steer srun, sbatch or edged itself; the job's own values of these come from the batch system
_RESERVED = re.compile(r"(SLURM|SBATCH|SRUN|SALLOC|EDGED)_.*|SLURM_CONF|BASH_ENV|ENV|SHELLOPTS|BASHOPTS")
_MPI = re.compile(r"[A-Za-z0-9_]{1,32}")


@dataclass(frozen=True, slots=True)
class Beside:
    """A program of ours that runs beside the payload and ends with it: a command line, and its files."""

    command: str
    files: Files


@dataclass(frozen=True, slots=True)
class Payload:
    """What the user wants run. Either ``executable`` or ``script``; paths are relative to the session.

    ``stdout`` and ``stderr`` empty: thrown away, except that ``join`` sends stderr where stdout goes.
    ``init``: lines of the site, run before. ``site_environment`` is the site's, e.g. its proxies.
    """

    executable: str = ""
    script: str = ""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    join: bool = False
    mpi: str = ""
    init: tuple[str, ...] = ()
    site_environment: Mapping[str, str] = field(default_factory=dict)
    beside: Beside | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What ``run.sh`` wrote down at the end. The job could have written anything: it decides about itself only."""

    exit_code: int
    started_at: float
    ended_at: float
    host: str


def launcher(job: str, session: PurePosixPath) -> bytes:
    """The script that the batch system starts. Pure; ``job`` and ``session`` are ours, not the user's.

    The marker is a symbolic link, made atomically on every file system; NFS may repeat a request that
    had succeeded, therefore a link that names this very process counts as made.
    """
    if not _JOB.fullmatch(job):
        raise BadRequest("not a job id")
    return f"""#!/bin/bash
: edged launches {job}
cd -- {shlex.quote(str(session))} || exit {EXIT_NO_SESSION}
me="${{SLURM_CLUSTER_NAME:-local}}.${{SLURM_JOB_ID:-0}}.${{SLURM_RESTART_COUNT:-0}}.$HOSTNAME.$$"
if ! ln -s -- "$me" {MARKER} 2>/dev/null && [ "$(readlink {MARKER})" != "$me" ]; then
  echo "edged: another copy of this job started before: $(readlink {MARKER})" >&2
  exit {EXIT_DUPLICATE}
fi
export EDGED_JOB_ID={shlex.quote(job)}
exec /bin/bash {RUN}
""".encode()


def session_files(job: str, payload: Payload) -> Files:
    """The files to put into the session directory before submission: name → (content, mode).

    Raises BadRequest when something cannot be said in a shell (NUL) or leaves the session directory.
    """
    if not _JOB.fullmatch(job):
        raise BadRequest("not a job id")
    files = {
        str(RUN): (_run(payload).encode("utf-8", "surrogateescape"), 0o600),
        str(PAYLOAD): (_payload(payload).encode("utf-8", "surrogateescape"), 0o600),
    }
    files |= payload.beside.files if payload.beside is not None else {}
    if payload.script:
        files[str(SCRIPT)] = (payload.script.encode("utf-8", "surrogateescape"), 0o700)
    return files


def read_outcome(content: bytes) -> Outcome | None:
    """The outcome file, None when it is not one."""
    lines = content[:MAX_OUTCOME].decode("utf-8", "replace").splitlines()
    said = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        found = Outcome(int(said["exit"]), float(said["started"]), float(said["ended"]), said["host"])
    except (KeyError, ValueError):
        return None
    possible = 0 <= found.exit_code <= 255 and 0 <= found.started_at <= found.ended_at < LATEST
    return found if possible else None


def _run(payload: Payload) -> str:
    """run.sh. TERM at the time limit reaches every process: bash must outlive the payload's clean-up."""
    lines = ["#!/bin/bash", "trap : TERM INT XCPU USR1 USR2", "unset SLURM_EXPORT_ENV", "started=$(date +%s)"]
    lines += [f"mkdir -p -- {quoted(folder)}" for folder in _folders(payload)]
    lines += [f"export {name}={quoted(value)}" for name, value in _names(payload.site_environment)]
    lines += payload.init
    if payload.script:
        lines.append(f"chmod u+x {SCRIPT}")
    if payload.beside is not None:
        lines.append(f"{payload.beside.command} </dev/null >/dev/null 2>&1 &")
    lines += [
        f"{_starter(payload.mpi)} {PAYLOAD} {_redirections(payload)}",
        "code=$?",
        *([_END_BESIDE] if payload.beside is not None else []),
        _OUTCOME_LINE,
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _starter(mpi: str) -> str:
    if not mpi:
        return "/bin/bash"
    if not _MPI.fullmatch(mpi):
        raise BadRequest("not a kind of MPI")
    return f"srun --mpi={mpi} --kill-on-bad-exit=1 /bin/bash"


def _payload(payload: Payload) -> str:
    """payload.sh: the user's environment is set only here, in the process that becomes the payload."""
    arguments = "".join(f" {quoted(argument)}" for argument in payload.arguments)
    lines = ["#!/bin/bash"]
    lines += [f"export {name}={quoted(value)}" for name, value in _checked(payload.environment)]
    if payload.script:
        how = f"./{SCRIPT}" if payload.script.startswith("#!") else f"/bin/bash {SCRIPT}"
        return "\n".join([*lines, f"exec {how}{arguments}"]) + "\n"
    if not payload.executable:
        raise BadRequest("neither executable nor script")
    if payload.executable.startswith("/"):
        return "\n".join([*lines, f"exec -- {quoted(payload.executable)}{arguments}"]) + "\n"
    here = quoted("./" + inside(payload.executable))
    lines.append(f"if [ -f {here} ]; then chmod u+x {here}; exec {here}{arguments}; fi")
    lines.append(f"exec -- {quoted(payload.executable)}{arguments}")  # found in PATH
    return "\n".join(lines) + "\n"


def _redirections(payload: Payload) -> str:
    stdin = quoted("./" + inside(payload.stdin)) if payload.stdin else "/dev/null"
    stdout = quoted("./" + inside(payload.stdout)) if payload.stdout else "/dev/null"
    if payload.join:
        return f"<{stdin} >{stdout} 2>&1"
    stderr = quoted("./" + inside(payload.stderr)) if payload.stderr else "/dev/null"
    return f"<{stdin} >{stdout} 2>{stderr}"


def _folders(payload: Payload) -> list[str]:
    names = [inside(name) for name in (payload.stdout, payload.stderr) if name]
    return sorted({"./" + name.rpartition("/")[0] for name in names if "/" in name})


def _names(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Raises BadRequest for what is no variable name."""
    for name in environment:
        if not _NAME.fullmatch(name):
            raise BadRequest(f"not a name of an environment variable: {name[:64]!r}")
    return list(environment.items())


def _checked(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """A user's variables: those that would steer batch clients, or edged, are left out."""
    return [(name, value) for name, value in _names(environment) if not _RESERVED.fullmatch(name)]


def inside(path: str) -> str:
    """``path`` if it is relative and stays in the session directory. Raises BadRequest."""
    parts = path.split("/")
    if "\0" in path or path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise BadRequest(f"not a path inside the session directory: {path[:128]!r}")
    if parts[0] == str(PRIVATE):
        raise BadRequest(f"{PRIVATE} is edged's own")
    return path


def quoted(text: str) -> str:
    """One shell word. Raises BadRequest for NUL, which no argument can hold."""
    if "\0" in text:
        raise BadRequest("a NUL character cannot be passed to a program")
    return shlex.quote(text)
