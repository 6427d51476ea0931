"""The batch kind of worker: performs verbs of the closed set that the installed drivers publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

import msgspec

from edged.accounts import messages, packets
from edged.accounts.api import BatchVerb
from edged.accounts.clients import Workplace
from edged.accounts.messages import Request, Start
from edged.accounts.worker import Answer
from edged.errors import BadRequest, Denied, Unavailable
from edged.identity.grants import Grant
from edged.logs import get_logger

log = get_logger("edged.accounts.batch")

ENTRY_POINTS = "edged.batch"
MAX_DEADLINE_S = 600.0


def verb_name(kind: type[BatchVerb]) -> str:
    """How a verb is called on the wire."""
    return f"{kind.__module__}:{kind.__qualname__}"


def load_verbs() -> dict[str, type[BatchVerb]]:
    """The verbs of every installed driver (``driver.verbs``), by name.

    A driver may be a site's own: one that cannot be imported is left out and told of, the others serve.
    """
    found: dict[str, type[BatchVerb]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found |= by_name(point.load().verbs)
        except Exception:
            log.exception("batch driver cannot be loaded", extra={"driver": point.name})
    return found


def by_name(verbs: Iterable[type[BatchVerb]]) -> dict[str, type[BatchVerb]]:
    """Verb name → class."""
    return {verb_name(verb): verb for verb in verbs}


class BatchCalls:
    """Performs verbs as the account. See ``worker.Calls``."""

    decode: Callable[[memoryview], Request] = staticmethod(messages.decoder(messages.Perform))

    def __init__(self, start: Start, verbs: Mapping[str, type[BatchVerb]]) -> None:
        self._start = start
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
            name: msgspec.msgpack.Decoder(kind) for name, kind in verbs.items()
        }

    def answer(self, grant: Grant, request: Request, body: int | None) -> Answer:
        """Perform one verb. Raises Denied, BadRequest, Unavailable, and what the verb raises."""
        assert isinstance(request, messages.Perform)
        verb = self._verb(request, body)
        require(grant, verb)
        deadline_s = min(max(request.deadline_s, 0.0), MAX_DEADLINE_S)
        start = self._start
        where = Workplace(
            start.account, start.home, start.sessions, start.locks, time.monotonic() + deadline_s
        )
        return Answer(verb.perform(where))

    def _verb(self, request: messages.Perform, body: int | None) -> BatchVerb:
        decoder = self._decoders.get(request.verb)
        if decoder is None:
            raise Unavailable("the batch driver is not loaded: see accountd's log", detail=request.verb)
        try:
            verb: BatchVerb = decoder.decode(
                request.body or packets.read_memory(-1 if body is None else body)
            )
        except (msgspec.MsgspecError, ValueError, OSError, packets.BrokenPeer) as error:
            raise BadRequest("malformed batch verb", detail=str(error)) from error
        return verb


def require(grant: Grant, verb: BatchVerb) -> None:
    """Raises Denied unless the grant covers the verb's action, and its job if it names one."""
    if not any(verb.action in scope.actions for scope in grant.scopes):
        raise Denied(f"the grant does not cover {verb.action.value}")
    job = getattr(verb, "job", None)
    if job is not None and job != grant.job:
        raise Denied("the grant is for another job", detail=f"{job} under a grant for {grant.job}")
