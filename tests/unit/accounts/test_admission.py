"""accountd's decision on a grant."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from edged.accounts.admission import admitted
from edged.accounts.settings import ANY_SERVICE, Settings
from edged.errors import Denied, Unavailable
from edged.identity.feed import Banned, Revocations
from edged.identity.grants import Ban, Grant, Scope, sign
from edged.identity.words import AccountName, Action, IssuerUrl, JobId, Principal, ServiceName, VoName

KEY = Ed25519PrivateKey.generate()
ALICE = Principal(issuer=IssuerUrl("https://i/"), subject="alice", vo=VoName("cms"), groups=("/cms/prod",))
JOBS_UID, STORAGE_UID, ALL_UID = 501, 502, 503


def settings(own: str | None = None) -> Settings:
    return Settings(
        socket="",
        public_key="",
        feed="",
        peers={
            JOBS_UID: frozenset({"jobs"}),
            STORAGE_UID: frozenset({"storage"}),
            ALL_UID: frozenset({ANY_SERVICE}),
        },
        allowed=frozenset({"cmsprd"}),
        minimum_uid=1000,
        exports=(),
        sessions="",
        locks="",
        file_threads=1,
        batch_threads=1,
        idle_s=1.0,
        own_account=own,
    )


def wire(*, service: str = "jobs", account: str = "cmsprd", job: str | None = None) -> bytes:
    actions = {Action.JOB_SUBMIT, Action.JOB_STAGE, Action.JOB_POLL, Action.JOB_CANCEL, Action.JOB_CLEAN}
    grant = Grant(
        kind="job" if job else "access",
        id="g",
        service=ServiceName(service),
        account=AccountName(account),
        scopes=(Scope(frozenset(actions)),),
        principal=ALICE,
        issued_at=100.0,
        expires_at=400.0,
        job=JobId(job) if job else None,
    )
    return sign(grant, KEY)


def decide(
    data: bytes,
    peer: int = JOBS_UID,
    own: str | None = None,
    ban: Ban | None = None,
    now: float = 200.0,
) -> Grant:
    revocations = Revocations()
    if ban is not None:
        revocations.apply(Banned(ban))
    return admitted(
        data, peer=peer, settings=settings(own), key=KEY.public_key(), revocations=revocations, now=now
    )


@pytest.mark.parametrize(
    ("data", "peer", "own"),
    [
        (wire(), STORAGE_UID, None),  # another service's grant
        (wire(service="storage"), JOBS_UID, None),
        (wire(), 999, None),  # nobody we know
        (wire(account="root"), JOBS_UID, None),  # not on the list
        (wire(), ALL_UID, "me"),  # self mode: another account
        (wire()[1:], JOBS_UID, None),
    ],
)
def test_refused(data: bytes, peer: int, own: str | None) -> None:
    with pytest.raises(Denied):
        decide(data, peer, own)


def test_admitted() -> None:
    assert decide(wire()).account == "cmsprd"
    assert decide(wire(service="storage"), ALL_UID).service == "storage"
    assert decide(wire(account="me"), ALL_UID, own="me").account == "me"


@pytest.mark.parametrize(
    "ban", [Ban(id="b", subject="alice"), Ban(id="b", group="cms"), Ban(id="b", issuer="https://i/")]
)
def test_a_ban_ends_access_and_leaves_a_job_its_end(ban: Ban) -> None:
    with pytest.raises(Denied):
        decide(wire(), ban=ban)
    left = decide(wire(job="j1"), ban=ban)
    assert left.scopes[0].actions == {Action.JOB_POLL, Action.JOB_CANCEL, Action.JOB_CLEAN}
    assert decide(wire(job="j1"), ban=replace(ban, keep_jobs=True)).allows(Action.JOB_SUBMIT)
    assert decide(wire(), ban=replace(ban, expires_at=150.0)).allows(Action.JOB_SUBMIT)


def test_a_clock_set_back_refuses_nobody_for_good() -> None:
    """Jobs accepted before it go on when it is right again: they wait at Unavailable, and end at Denied."""
    with pytest.raises(Unavailable):
        decide(wire(job="j1"), now=100.0 - 3600)
    with pytest.raises(Denied):
        decide(wire(job="j1"), now=400.0)
