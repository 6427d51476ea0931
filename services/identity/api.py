"""The public identity API: who am I, and the site's bans."""

from __future__ import annotations

import msgspec

from edged.config import Config
from edged.errors import BadRequest
from edged.http.operations import ADMIN, AUTHENTICATED, Call, Operation, Reply
from edged.identity.client import IdentityClient
from edged.identity.grants import Ban
from edged.identity.judge import shown
from edged.logs import rfc3339


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """Where a token leads at this site. ``expires_at`` is the token's own end, RFC 3339."""

    site: str
    issuer: str
    subject: str
    vo: str
    account: str
    job_class: str
    groups: list[str]
    may: list[str]
    expires_at: str


class NewBan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whoever matches *all* the words given is refused. A subject needs its issuer."""

    issuer: str = ""
    subject: str = ""
    group: str = ""
    client: str = ""
    token_id: str = ""
    keep_jobs: bool = False
    reason: str = ""
    expires_at: float | None = None


class BanList(msgspec.Struct, frozen=True):
    """All bans that hold."""

    bans: list[Ban]


def operations(config: Config, identity: IdentityClient) -> tuple[Operation, ...]:
    """The table of this API."""
    site = config.site.name

    async def whoami(call: Call) -> Me:
        verdict = call.caller
        principal = verdict.principal
        return Me(
            site=site,
            issuer=principal.issuer,
            subject=principal.subject,
            vo=verdict.vo,
            account=verdict.account,
            job_class=verdict.job_class.value,
            groups=list(principal.groups),
            may=[shown(capability) for capability in verdict.capabilities],
            expires_at=rfc3339(verdict.token_expires_at),
        )

    async def ban(call: Call) -> Ban:
        return await identity.add_ban(Ban(id="", **msgspec.structs.asdict(call.body)), _who(call))

    async def bans(call: Call) -> BanList:
        return BanList(list(await identity.bans()))

    async def lift(call: Call) -> Reply:
        if not call.path["id"].isalnum():
            raise BadRequest("not a ban's id")
        await identity.lift_ban(call.path["id"], _who(call))
        return Reply(None, status=204)

    return (
        Operation(
            method="GET",
            path="/v1/whoami",
            access=AUTHENTICATED,
            run=whoami,
            returns=Me,
            summary="Where this token leads",
        ),
        Operation(
            method="GET",
            path="/v1/bans",
            access=ADMIN,
            run=bans,
            returns=BanList,
            summary="The bans that hold",
        ),
        Operation(
            method="POST",
            path="/v1/bans",
            access=ADMIN,
            run=ban,
            takes=NewBan,
            returns=Ban,
            status=201,
            max_body=16384,
            summary="Ban a subject, group, client or token; in force everywhere within a second",
        ),
        Operation(
            method="DELETE",
            path="/v1/bans/{id}",
            access=ADMIN,
            run=lift,
            status=204,
            problems=(404,),
            summary="Lift a ban",
        ),
    )


def _who(call: Call) -> str:
    principal = call.caller.principal
    return f"{principal.subject} of {principal.issuer}"
