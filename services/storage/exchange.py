"""One request on its way through a verb: who asks, for what, and what its policy says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from edged.accounts.api import Entry, Files
from edged.errors import Conflict, Denied, EdgeError, NotFound, PreconditionFailed
from edged.identity.client import Verdicts
from edged.identity.words import Action, Verdict
from edged.logs import audit
from services.storage import access
from services.storage.conditions import Outcome, evaluate
from services.storage.namespace import Target


@dataclass(slots=True)
class Exchange:
    """A request whose caller is known. ``token`` is empty for anonymous reading."""

    request: web.BaseRequest
    method: str
    target: Target
    verdict: Verdict
    token: str
    identity: Verdicts
    files: Files

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

    async def renewed(self) -> bytes:
        """A grant that lives long enough for the next call, as long as the token does."""
        if self.token and self.verdict.expires_at < time.time() + 30:
            self.verdict = await self.identity.verdict(self.token)
        return self.verdict.grant

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
