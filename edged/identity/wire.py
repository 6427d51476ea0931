"""What fronts and the signer say to each other: msgpack on a SOCK_SEQPACKET unix socket, one packet each.

A front says ``Hello`` first and then only ``Ask``; identity answers each with an ``Answer`` of the same
number, in any order. Anything else closes the connection. Which service may be named in ``Hello``
is decided by the peer's uid (SO_PEERCRED), not by what it says.
"""

from __future__ import annotations

import msgspec

from edged import errors
from edged.errors import EdgeError
from edged.identity.grants import Ban
from edged.identity.words import AccountName, Action, JobFacts, JobId, ServiceName, Verdict
from edged.sshca import Certificate, SlurmToken

SOCKET = "identity.sock"  # below [runtime] run


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The service that asks."""

    service: ServiceName


class ForVerdict(msgspec.Struct, frozen=True, tag=True):
    """The verdict on a bearer token."""

    token: str


class ForAsserted(msgspec.Struct, frozen=True, tag=True):
    """The verdict on an identity the front verified itself."""

    subject_dn: str
    account: AccountName


class ForJobGrant(msgspec.Struct, frozen=True, tag=True):
    """A job grant; ``grant`` is the access grant of the verdict it was accepted under."""

    grant: bytes
    job: JobId


class ForTransferGrant(msgspec.Struct, frozen=True, tag=True):
    """A grant to finish a transfer; ``grant`` is the access grant it was begun under.

    ``paths`` are namespace paths: of each, and what lies below, it keeps what ``grant`` allows.
    """

    grant: bytes
    paths: tuple[str, ...]


class ForStandingGrant(msgspec.Struct, frozen=True, tag=True):
    """A grant that only polls."""

    account: AccountName


class ForJobToken(msgspec.Struct, frozen=True, tag=True):
    """A job's own proxy token."""

    grant: bytes
    job: JobId


class JobReport(msgspec.Struct, frozen=True, tag=True):
    """Where a job runs, or that it ended."""

    job: JobId
    nodes: tuple[str, ...]
    ended: bool


class ForJobFacts(msgspec.Struct, frozen=True, tag=True):
    """Whom a job token speaks for."""

    job: JobId
    token: str


class AddBan(msgspec.Struct, frozen=True, tag=True):
    """A ban; identity sets its id and time."""

    ban: Ban
    by: str


class LiftBan(msgspec.Struct, frozen=True, tag=True):
    """End a ban."""

    id: str
    by: str


class ListBans(msgspec.Struct, frozen=True, tag=True):
    """All bans that hold."""


class Explain(msgspec.Struct, frozen=True, tag=True):
    """``edged whoami``: every step of a decision. Only for root and identity's own user."""

    token: str


class ForSshCertificate(msgspec.Struct, frozen=True, tag=True):
    """A certificate for the account of a job or standing grant, to reach a [[jobs.cluster]] of kind ssh."""

    grant: bytes
    cluster: str
    public_key: str
    action: Action


class ForSlurmToken(msgspec.Struct, frozen=True, tag=True):
    """A JWT for the account of a job or standing grant, for a [[jobs.cluster]] of kind slurmrest."""

    grant: bytes
    cluster: str
    action: Action


class ForOwnCertificate(msgspec.Struct, frozen=True, tag=True):
    """A certificate for a person; ``grant`` is the access grant of the API's own verdict."""

    grant: bytes
    public_key: str
    source: str
    life_s: float


class ForRevocations(msgspec.Struct, frozen=True, tag=True):
    """The CA's public key and the revocation list."""


class RevokeCertificate(msgspec.Struct, frozen=True, tag=True):
    """End a certificate before its time."""

    serial: int
    by: str


Asked = (
    ForSshCertificate
    | ForSlurmToken
    | ForOwnCertificate
    | ForRevocations
    | RevokeCertificate
    | ForVerdict
    | ForAsserted
    | ForJobGrant
    | ForTransferGrant
    | ForStandingGrant
    | ForJobToken
    | JobReport
    | ForJobFacts
    | AddBan
    | LiftBan
    | ListBans
    | Explain
)


class Ask(msgspec.Struct, frozen=True, tag=True):
    """One question."""

    number: int
    what: Asked


class Failure(msgspec.Struct, frozen=True, tag=True):
    """An error of ``edged.errors``: its code, its safe message, and the operator's detail."""

    code: str
    message: str
    detail: str = ""
    retry_after_s: float | None = None


class Grant(msgspec.Struct, frozen=True, tag=True):
    """A signed grant and its end (Unix seconds)."""

    wire: bytes
    expires_at: float


class Told(msgspec.Struct, frozen=True, tag=True):
    """A text: a job token, or the steps of an explanation."""

    text: str


class Bans(msgspec.Struct, frozen=True, tag=True):
    """Some bans."""

    bans: tuple[Ban, ...]


class Judged(msgspec.Struct, frozen=True, tag=True):
    """A verdict."""

    verdict: Verdict


class Facts(msgspec.Struct, frozen=True, tag=True):
    """What a job token proves."""

    facts: JobFacts


class Explained(msgspec.Struct, frozen=True, tag=True):
    """The steps, and where they ended. ``verdict`` carries no grant; None when refused."""

    steps: tuple[str, ...]
    verdict: Verdict | None
    refused: str = ""
    code: str = ""


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is done, durably."""


class Revocations(msgspec.Struct, frozen=True, tag=True):
    """``authority``: the CA's public key, one line. ``krl``: a list that sshd reads as RevokedKeys."""

    authority: str
    krl: bytes


Answered = (
    Certificate | SlurmToken | Revocations | Judged | Grant | Told | Bans | Facts | Explained | Done | Failure
)


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The answer to the ask of the same number."""

    number: int
    what: Answered


encode = msgspec.msgpack.Encoder().encode
decode_from_front = msgspec.msgpack.Decoder(Hello | Ask).decode
decode_from_identity = msgspec.msgpack.Decoder(Answer).decode

_KINDS: dict[str, type[EdgeError]] = {
    kind.code: kind
    for kind in (
        errors.BadRequest,
        errors.Unauthenticated,
        errors.Denied,
        errors.NotFound,
        errors.Conflict,
        errors.Busy,
        errors.Unavailable,
        errors.Upstream,
        errors.NoSpace,
    )
}


def failure(error: EdgeError) -> Failure:
    """An error on its way to the front."""
    retry = error.retry_after_s if isinstance(error, errors.Busy) else None
    return Failure(error.code, error.message, error.detail, retry)


def raised(told: Failure) -> EdgeError:
    """The same error at the front."""
    kind = _KINDS.get(told.code, errors.Unavailable)
    return kind(told.message, detail=told.detail)
