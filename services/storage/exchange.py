"""One request on its way through a verb: who asks, for what, and what its policy says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from edged.accounts.api import Entry, Files
from edged.errors import (
    Conflict,
    Denied,
    EdgeError,
    NotFound,
    PreconditionFailed,
    Unavailable,
    UnknownOutcome,
)
from edged.http.request import Request
from edged.identity.client import Verdicts
from edged.identity.words import Action, Verdict
from edged.logs import audit, get_logger
from services.storage import access
from services.storage.conditions import Outcome, evaluate
from services.storage.namespace import Target

log = get_logger("edged.storage.exchange")

ASK_AGAIN_S = 1.0


@dataclass(slots=True)
class Exchange:
    """A request whose caller is known. ``token`` is empty for anonymous reading."""

    request: Request
    method: str
    target: Target
    verdict: Verdict
    token: str
    identity: Verdicts
    files: Files
    lasts: bool = False

    @property
    def grant(self) -> bytes:
        return self.verdict.grant

    @property
    def headers(self) -> Mapping[str, str]:
        return self.request.headers

    @property
    def holder(self) -> str:
        """Who owns a lock: one subject of one issuer."""
        return f"{self.verdict.principal.issuer} {self.verdict.principal.subject}"

    def allows(self, action: Action, target: Target | None = None) -> bool:
        """Whether the token's capabilities cover it."""
        return access.may(self.verdict.capabilities, action, (target or self.target).vo_path).allowed

    def require(self, action: Action, target: Target | None = None) -> None:
        """Raises Denied, with an audit line either way."""
        target = target or self.target
        decision = access.member(self.verdict, target.export)
        if decision.allowed:
            decision = access.may(self.verdict.capabilities, action, target.vo_path)
        self.decided(decision, action.value, target)

    def decided(self, decision: access.Decision, what: str, target: Target) -> None:
        """Write one audit line, and raise Denied on a refusal."""
        audit(
            what,
            who=self.verdict.principal.for_log(),
            account=self.verdict.account,
            path=target.key,
            allowed=decision.allowed,
            reason=decision.reason,
        )
        if not decision.allowed:
            raise Denied(decision.reason)

    def decided_refused(self, what: str, reason: str) -> None:
        """An audit line for a refusal that no capability could change."""
        audit(
            what,
            who=self.verdict.principal.for_log(),
            account=self.verdict.account,
            path=self.target.key,
            allowed=False,
            reason=reason,
        )

    @contextmanager
    def lasting(self, *targets: Target) -> Iterator[None]:
        """Inside, ``grant`` goes on being worth something at ``targets``, also after the token's end.

        What a token was good for when it began is finished: a transfer may take longer than tokens live.
        Half-way to the grant's end identity is asked for one that only finishes this; bans end it too.
        """
        if self.lasts:
            yield
            return
        self.lasts = True
        loop = asyncio.get_running_loop()
        asking: list[asyncio.Task[None]] = []
        ends = self.verdict.expires_at
        timer = loop.call_later(
            max(0.0, (ends - time.time()) / 2),
            lambda: asking.append(loop.create_task(self._outlive(targets, ends))),
        )
        try:
            yield
        finally:
            timer.cancel()
            for task in asking:
                task.cancel()

    async def _outlive(self, targets: tuple[Target, ...], ends: float) -> None:
        """While identity is away, ask again: there is still time."""
        paths = tuple(target.key for target in targets)
        while time.time() < ends:
            try:
                grant = await self.identity.transfer_grant(self.grant, paths)
            except (Unavailable, UnknownOutcome):
                await asyncio.sleep(ASK_AGAIN_S)
            except EdgeError as error:
                log.warning("the transfer ends with its token", extra={"reason": str(error)})
                return
            else:
                self.verdict = msgspec.structs.replace(self.verdict, grant=grant)
                return

    async def look(self, target: Target | None = None) -> Entry | None:
        """What is there; None when nothing is (also below a file)."""
        try:
            return await self.files.stat(self.grant, (target or self.target).place)
        except NotFound:
            return None
        except Conflict:  # a part of the path is a file
            return None

    async def entry(self, target: Target | None = None) -> Entry:
        """What is there. Raises NotFound."""
        found = await self.look(target)
        if found is None:
            raise NotFound("no such file or directory")
        return found

    def check_conditions(self, entry: Entry | None) -> None:
        """Raises PreconditionFailed. For methods that change something; reading has its own answer, 304."""
        if evaluate(self.method, self.headers, entry) is not Outcome.GO_ON:
            raise PreconditionFailed("a precondition of the request does not hold")


async def quietly(call: object) -> None:
    """Await a clean-up whose failure changes nothing for the caller."""
    try:
        await call  # type: ignore[misc]
    except EdgeError:
        return
