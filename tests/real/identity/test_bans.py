"""A ban is in force within a second, by each of its words; it survives restarts; being cut off refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.errors import BadRequest, Denied, EdgeError, NotFound, Unauthenticated, Unavailable
from edged.identity import feed, grants
from edged.identity.client import IdentityClient
from edged.identity.grants import Ban
from edged.identity.testissuer import ThrowAwayIssuer
from edged.identity.words import JobId, Principal, ServiceName
from services.identity import sealing
from tests.support.issuer import Identity, identity, issuer, tree, until

WORDS: list[tuple[str, Callable[[ThrowAwayIssuer], dict[str, Any]]]] = [
    ("subject", lambda trusted: {"issuer": trusted.url, "subject": "alice"}),
    ("group", lambda trusted: {"group": "/cms"}),
    ("client", lambda trusted: {"client": "broker"}),
    ("token", lambda trusted: {"token_id": "t1"}),
]


def admin(site: Identity) -> IdentityClient:
    return IdentityClient(site.config, ServiceName("admin"))


class Told:
    """What a front hears of bans."""

    def __init__(self, client: IdentityClient) -> None:
        self.heard = asyncio.Event()
        self.covers: Callable[[Principal], bool] = lambda _: False
        self.keep_jobs = False
        client.on_ban(self._hear)

    def _hear(self, covers: Callable[[Principal], bool], keep_jobs: bool) -> None:
        self.covers, self.keep_jobs = covers, keep_jobs
        self.heard.set()


@pytest.mark.parametrize("keep_jobs", [False, True])
@pytest.mark.parametrize(("word", "make"), WORDS, ids=[word for word, _ in WORDS])
async def test_in_force_within_a_second(tmp_path: Path, word: str, make: Any, keep_jobs: bool) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        told = Told(client)
        banned = trusted.token(jti="t1", scope="compute.create", groups=["/cms/production"])
        free = trusted.token(sub="bob", jti="t2", client_id="other")
        verdict = await client.verdict(banned)
        await client.verdict(free)
        started = time.monotonic()
        made = await admin(site).add_ban(
            Ban(id="", keep_jobs=keep_jobs, reason="test", **make(trusted)), "me"
        )
        async with asyncio.timeout(1.0):
            await told.heard.wait()
        assert time.monotonic() - started < 1.0
        assert told.covers(verdict.principal)
        assert told.keep_jobs is keep_jobs
        with pytest.raises(Denied, match="banned"):
            await client.verdict(banned)
        with pytest.raises(Denied, match="banned"):
            await client.job_grant(verdict, JobId("j1"))
        assert not told.covers((await client.verdict(free)).principal)
        await admin(site).lift_ban(made.id, "me")
        assert (await client.verdict(banned)).account == "cmsprd"


async def test_bans_and_key_survive_a_restart(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        held = await client.verdict(trusted.token())
        await client.verdict(trusted.token(sub="mallory"))
        await admin(site).add_ban(Ban(id="", issuer=trusted.url, subject="mallory"), "me")
        await site.stop("signer")
        with pytest.raises(Unavailable):
            await client.verdict(trusted.token(sub="someone else"))
        await site.start("signer")
        await until(lambda: client.not_ready() is None)
        public = sealing.public_key(site.config.runtime.state / "identity")
        assert grants.verify(held.grant, public, time.time()).account == "cmsuser"
        with pytest.raises(Denied, match="banned"):
            await client.verdict(trusted.token(sub="mallory"))
        assert [ban.subject for ban in await admin(site).bans()] == ["mallory"]
        for secret in ("grant.key", "identity.sqlite"):
            assert (site.config.runtime.state / "identity" / secret).stat().st_mode & 0o777 == 0o600


async def test_cut_off_for_a_second_refuses_even_what_is_remembered(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        token = trusted.token()
        await client.verdict(token)
        await site.stop("signer")
        await until(lambda: client.not_ready() is not None, 2 * feed.STALE_S)
        with pytest.raises(Unavailable):
            await client.verdict(token)
        await site.start("signer")
        await until(lambda: client.not_ready() is None)
        assert (await client.verdict(token)).account == "cmsuser"


async def test_a_ban_made_while_a_front_was_away_is_told_on_its_return(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted, identity(tree(tmp_path, trusted)) as site:
        await admin(site).add_ban(Ban(id="", group="/cms"), "me")
        client = IdentityClient(site.config, ServiceName("jobs"))
        told = Told(client)
        async with asyncio.TaskGroup() as tasks, client.running(tasks):
            assert told.heard.is_set()


async def test_accountd_reads_the_feed_without_asyncio(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted, identity(tree(tmp_path, trusted)) as site:
        await admin(site).add_ban(Ban(id="", group="/cms"), "me")
        reader = feed.FeedReader(site.config.runtime.run / feed.SOCKET)
        state = feed.Revocations()

        def loaded() -> bool:
            for message in reader.read():
                state.apply(message)
            return state.usable(time.monotonic())

        try:
            await until(loaded)
            assert [ban.group for ban in state.bans()] == ["/cms"]
            await site.stop("signer")
            with pytest.raises(Unavailable):
                await until(loaded, 0.5)
                reader.read()
        finally:
            reader.close()


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"subject": "alice"},
        {"issuer": "https://i/"},
        {"group": "/"},
        {"client": "x\ny"},
        {"client": "x" * 2000},
        {"client": "x", "expires_at": 1.0},
    ],
)
async def test_a_ban_that_makes_no_sense_is_refused(tmp_path: Path, words: dict[str, Any]) -> None:
    async with issuer(tmp_path) as trusted, identity(tree(tmp_path, trusted)) as site:
        with pytest.raises(BadRequest):
            await admin(site).add_ban(Ban(id="", **words), "me")


async def test_only_admins_ban(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        with pytest.raises(Denied):
            await client.add_ban(Ban(id="", group="/cms"), "me")
        with pytest.raises(NotFound):
            await admin(site).lift_ban("nothing", "me")


async def test_job_tokens_live_as_long_as_their_job(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client("jobs") as jobs,
        site.client("egress") as egress,
    ):
        verdict = await jobs.verdict(trusted.token(scope="compute.create", groups=["cms/production"]))
        grant = await jobs.job_grant(verdict, JobId("j1"))
        with pytest.raises(Denied):
            await jobs.issue_job_token(verdict.grant, JobId("j1"))
        with pytest.raises(Denied):
            await jobs.issue_job_token(grant, JobId("j2"))
        token = await jobs.issue_job_token(grant, JobId("j1"))
        await jobs.report_job(JobId("j1"), ("node7",), ended=False)
        facts = await egress.job_facts(JobId("j1"), token)
        assert (facts.account, facts.vo, facts.job_class.value) == ("cmsprd", "cms", "production")
        assert facts.nodes == ("node7",)
        for job, secret in (("j1", "wrong"), ("j2", token), ("j1", "x" * 5000), ("j1", "\udc80")):
            with pytest.raises(Unauthenticated):
                await egress.job_facts(JobId(job), secret)
        with pytest.raises(Denied):
            await egress.report_job(JobId("j1"), (), ended=True)
        await site.stop("signer")  # a restart forgets nothing
        await site.start("signer")
        await until(lambda: egress.not_ready() is None and jobs.not_ready() is None)
        await egress.job_facts(JobId("j1"), token)
        ended = asyncio.Event()
        egress.on_job_end(lambda job: ended.set())
        await jobs.report_job(JobId("j1"), (), ended=True)
        async with asyncio.timeout(1.0):
            await ended.wait()
        with pytest.raises(Unauthenticated):
            await egress.job_facts(JobId("j1"), token)


@pytest.mark.parametrize("job", ["", ".", "..", "../x", "a/b", "a\nb", "x" * 200, "\u00e4"])
async def test_a_job_id_is_one_plain_segment(tmp_path: Path, job: str) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        verdict = await client.verdict(trusted.token())
        with pytest.raises(EdgeError):
            await client.job_grant(verdict, JobId(job))
