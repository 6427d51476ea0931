"""The engine's states in ARC's words. Clients compare these strings; DIRAC fails on one it does not know."""

from __future__ import annotations

from collections.abc import Mapping

from edged.errors import BadRequest
from services.jobs.model import Job, State

STATES = frozenset(
    {"ACCEPTING", "ACCEPTED", "PREPARING", "PREPARED", "SUBMITTING", "QUEUING", "RUNNING", "HELD"}
    | {"EXITINGLRMS", "OTHER", "EXECUTED", "FINISHING", "KILLING", "FINISHED", "FAILED", "KILLED", "WIPED"}
)
NONE = "None"

_ARC: Mapping[State, str] = {
    State.ACCEPTED: "ACCEPTED",
    State.PREPARING: "PREPARING",
    State.SUBMITTING: "SUBMITTING",
    State.QUEUED: "QUEUING",
    State.HELD: "HELD",
    State.RUNNING: "RUNNING",
    State.SUSPENDED: "HELD",
    State.FINISHING: "EXITINGLRMS",
    State.FINISHED: "FINISHED",
    State.FAILED: "FAILED",
    State.KILLED: "KILLED",
    State.LOST: "FAILED",
}
_EMIES: Mapping[str, str] = {
    "ACCEPTED": "accepted",
    "PREPARING": "preprocessing",
    "SUBMITTING": "processing-accepting",
    "QUEUING": "processing-queued",
    "HELD": "processing-queued",
    "RUNNING": "processing-running",
    "EXITINGLRMS": "processing-running",
    "KILLING": "processing-running",
    "FINISHED": "terminal",
    "FAILED": "terminal",
    "KILLED": "terminal",
}
_NORDUGRID: Mapping[str, str] = {
    "QUEUING": "INLRMS:Q",
    "RUNNING": "INLRMS:R",
    "HELD": "INLRMS:H",
    "EXITINGLRMS": "INLRMS:E",
    "SUBMITTING": "SUBMIT",
    "KILLING": "CANCELING",
}


def arc_state(job: Job) -> str:
    """One of STATES. A job that waits for its client's files is PREPARING: the client may send them again."""
    state = job.state
    if job.cancel and not state.final:
        return "KILLING"
    if state is State.ACCEPTED and job.missing:
        return "PREPARING"
    return _ARC[state]


def info_states(job: Job) -> list[str]:
    """The ``State`` list of the information document: the same in three vocabularies."""
    state = arc_state(job)
    return [f"nordugrid:{_NORDUGRID.get(state, state)}", f"emies:{_EMIES[state]}", f"arcrest:{state}"]


def wanted(text: str) -> frozenset[str]:
    """``?state=A,B``. Raises BadRequest for what is no state."""
    words = frozenset(word.strip().upper() for word in text.split(",") if word.strip())
    if not words <= STATES:
        raise BadRequest(f"not a state: {min(words - STATES)[:32]!r}")
    return words
