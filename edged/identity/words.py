"""The words of identity: who asks, what the token allows, which account answers.

Pure values, shared by every service. See ``grants.py`` for the signed form and ``client.py`` for
how a front gets them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

import msgspec

IssuerUrl = NewType("IssuerUrl", str)
VoName = NewType("VoName", str)
AccountName = NewType("AccountName", str)
JobId = NewType("JobId", str)
ServiceName = NewType("ServiceName", str)


class JobClass(StrEnum):
    """Class of work: sets limits, queues and egress."""

    PRODUCTION = "production"
    PILOT = "pilot"
    CHAOTIC = "chaotic"


class Action(StrEnum):
    """What a capability or a grant allows. Token scopes use the same words (WLCG profile 1.3)."""

    STORAGE_READ = "storage.read"
    STORAGE_CREATE = "storage.create"
    STORAGE_MODIFY = "storage.modify"
    STORAGE_STAGE = "storage.stage"
    STORAGE_POLL = "storage.poll"
    STORAGE_STAT = "storage.stat"  # ours: implied by each of the above, never found in a token
    COMPUTE_READ = "compute.read"
    COMPUTE_CREATE = "compute.create"
    COMPUTE_MODIFY = "compute.modify"
    COMPUTE_CANCEL = "compute.cancel"
    # what a job grant holds: revoking the first two leaves the last three
    JOB_SUBMIT = "job.submit"
    JOB_STAGE = "job.stage"
    JOB_POLL = "job.poll"
    JOB_CANCEL = "job.cancel"
    JOB_CLEAN = "job.clean"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who the token says. ``groups`` keep their leading slash; ``client`` is the OAuth client id."""

    issuer: IssuerUrl
    subject: str
    vo: VoName
    groups: tuple[str, ...] = ()
    entitlements: tuple[str, ...] = ()
    client: str = ""
    token_id: str = ""

    def for_log(self) -> dict[str, object]:
        """What may be logged of a principal: never the token."""
        return {"issuer": self.issuer, "subject": self.subject, "vo": self.vo, "jti": self.token_id}


class Capability(msgspec.Struct, frozen=True):
    """One scope of the token: an action, and for storage the path it covers, relative to the VO's prefix."""

    action: Action
    path: str = "/"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A verified token, mapped: everything a front needs to answer a request.

    ``grant`` is the signed access grant for the front's own service, which it hands on to accountd.
    ``expires_at`` (Unix seconds) is the earlier of the token's and the grant's end. ``token_expires_at`` is
    ``inf`` for who came without one: an identity that the front itself asserts.
    """

    principal: Principal
    account: AccountName
    job_class: JobClass
    vo: VoName
    capabilities: tuple[Capability, ...]
    grant: bytes
    expires_at: float
    token_expires_at: float
    rule: int | None = None  # index of the [[mapping]] rule: its queue, QOS, reservation …

    def has(self, action: Action) -> bool:
        """Whether any capability allows ``action`` (for actions without a path)."""
        return any(capability.action is action for capability in self.capabilities)


class JobFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's own proxy token proves. ``nodes`` are host names or addresses, empty while unknown."""

    job: JobId
    account: AccountName
    vo: VoName
    job_class: JobClass
    principal: Principal
    nodes: tuple[str, ...] = ()
