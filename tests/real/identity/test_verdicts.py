"""A token from a real issuer becomes a verdict with a grant, over real sockets."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path

import pytest

from edged.config import parse
from edged.errors import Denied, Unauthenticated, Unavailable
from edged.identity import grants
from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import ThrowAwayIssuer
from edged.identity.words import AccountName, Action, JobClass, JobId
from services.identity import sealing
from tests.support.issuer import identity, issuer, tree


async def test_a_token_becomes_an_account_and_a_grant(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        verdict = await client.verdict(trusted.token(groups=["/cms", "/cms/production"]))
        assert (verdict.account, verdict.job_class, verdict.vo) == ("cmsprd", JobClass.PRODUCTION, "cms")
        assert verdict.principal.subject == "alice"
        assert verdict.rule == 0
        public = sealing.public_key(site.config.runtime.state / "identity")
        grant = grants.verify(verdict.grant, public, time.time())
        assert (grant.kind, grant.service, grant.account) == ("access", "jobs", "cmsprd")
        assert grant.expires_at - grant.issued_at <= 300


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_capabilities_win_over_groups(tmp_path: Path, algorithm: str) -> None:
    async with (
        issuer(tmp_path, algorithm=algorithm) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client("storage") as client,
    ):
        plain = await client.verdict(trusted.token())
        assert plain.has(Action.COMPUTE_CREATE)
        limited = await client.verdict(trusted.token(scope="openid storage.read:/store"))
        assert not limited.has(Action.COMPUTE_CREATE)
        public = sealing.public_key(site.config.runtime.state / "identity")
        grant = grants.verify(limited.grant, public, time.time())
        assert grant.allows(Action.STORAGE_READ, "/cms/store/file")
        assert not grant.allows(Action.STORAGE_READ, "/cms/storehouse")
        assert not grant.allows(Action.STORAGE_CREATE, "/cms/store/file")


async def test_two_issuers_with_the_same_subject(tmp_path: Path) -> None:
    ca = ThrowAwayCa(tmp_path / "ca")
    async with (
        ThrowAwayIssuer(ca).running() as one,
        ThrowAwayIssuer(ca).running() as two,
        identity(tree(tmp_path, one, two)) as site,
        site.client() as client,
    ):
        first, second = await client.verdict(one.token()), await client.verdict(two.token())
        assert (first.account, second.account) == ("cmsuser", "vo1user")
        with pytest.raises(Unauthenticated, match="key"):
            await client.verdict(two.token(iss=one.url))


async def test_one_ask_for_many_requests_with_one_token(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        token = trusted.token()
        verdicts = await asyncio.gather(*(client.verdict(token) for _ in range(50)))
        assert len({id(verdict) for verdict in verdicts}) == 1


async def test_unmapped_is_denied(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted:
        config = tree(tmp_path, trusted)
        config["mapping"] = config["mapping"][:1]
        async with identity(config) as site, site.client() as client:
            with pytest.raises(Denied, match="no mapping rule"):
                await client.verdict(trusted.token(groups=["/cms/production/eu"]))


async def test_grants_of_jobs(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted, identity(tree(tmp_path, trusted)) as site:
        public = sealing.public_key(site.config.runtime.state / "identity")
        async with site.client("jobs") as jobs, site.client("storage") as storage:
            token = trusted.token()
            verdict = await jobs.verdict(token)
            grant = grants.verify(await jobs.job_grant(verdict, JobId("j1")), public, time.time())
            assert (grant.kind, grant.job, grant.account) == ("job", "j1", "cmsuser")
            assert grant.allows(Action.JOB_CANCEL)
            standing = await jobs.standing_grant(AccountName("cmsuser"))
            assert grants.verify(standing, public, time.time()).scopes[0].actions == {Action.JOB_POLL}
            assert await jobs.standing_grant(AccountName("cmsuser")) is standing
            with pytest.raises(Denied):
                await jobs.standing_grant(AccountName("root"))
            with pytest.raises(Denied):
                await storage.job_grant(await storage.verdict(token), JobId("j1"))
            with pytest.raises(Denied):  # the storage front's grant is worth nothing to the job engine
                await jobs.job_grant(await storage.verdict(token), JobId("j1"))
            with pytest.raises(Denied):
                await jobs.transfer_grant(verdict.grant, ("/cms/f",))
            limited = await jobs.verdict(trusted.token(scope="compute.read"))
            with pytest.raises(Denied, match=r"compute\.create"):
                await jobs.job_grant(limited, JobId("j1"))


async def test_asserted_only_as_configured(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted:
        config = tree(tmp_path, trusted, assertions=[{"service": "jobs", "accounts": ["cmsuser"]}])
        async with identity(config) as site, site.client("jobs") as jobs, site.client("storage") as storage:
            verdict = await jobs.asserted("/DC=ch/CN=alice", AccountName("cmsuser"))
            assert (verdict.account, verdict.vo) == ("cmsuser", "cms")
            assert verdict.has(Action.COMPUTE_CREATE)
            assert verdict.expires_at < time.time() + 3600
            assert verdict.token_expires_at == math.inf, "there is no token whose end would end a stream"
            with pytest.raises(Unauthenticated):  # no token finds what is remembered of assertions
                await jobs.verdict("cmsuser\0/DC=ch/CN=alice")
            with pytest.raises(Denied):
                await jobs.asserted("/DC=ch/CN=alice", AccountName("cmsprd"))
            with pytest.raises(Denied):
                await storage.asserted("/DC=ch/CN=alice", AccountName("cmsuser"))


async def test_no_identity_means_no_answer(tmp_path: Path) -> None:
    config = parse({"site": {"name": "T"}, "runtime": {"state": str(tmp_path), "run": str(tmp_path)}})
    async with identity(config, start=False) as site, site.client() as client:
        assert client.not_ready() is not None
        with pytest.raises(Unavailable):
            await client.verdict("a.b.c")
