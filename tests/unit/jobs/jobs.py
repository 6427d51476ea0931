"""Jobs as values, for tests of what is decided about them."""

from __future__ import annotations

from edged.identity.words import AccountName, IssuerUrl, JobClass, JobId, Principal, VoName
from services.jobs.model import Job

OWNER = Principal(issuer=IssuerUrl("https://issuer.example"), subject="alice", vo=VoName("cms"))


def job(name: str, *, queue: str = "cpu", array: str = "") -> Job:
    """A job of alice's, named by its id."""
    return Job(
        id=JobId(name),
        owner=OWNER,
        account=AccountName("cmsprd"),
        vo=VoName("cms"),
        job_class=JobClass.PRODUCTION,
        queue=queue,
        batch="slurm",
        array=array,
    )
