"""Rotation, outage, lies: the issuer is another site's server, and may do anything."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from edged.config import parse
from edged.errors import EdgeError, Unauthenticated, Unavailable
from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import Fault, ThrowAwayIssuer
from tests.support.issuer import identity, issuer, tree, until


async def test_a_rotated_key_is_picked_up_by_its_first_token(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        old = trusted.token()
        trusted.rotate("RS256")
        assert (await client.verdict(trusted.token())).account == "cmsuser"
        assert (await client.verdict(old)).account == "cmsuser"


async def test_looks_for_unknown_keys_are_rate_limited(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        before = trusted.requests["/jwks"]
        for number in range(20):
            with pytest.raises(Unauthenticated, match="does not publish"):
                await client.verdict(trusted.token(headers={"kid": f"k{number}"}))
        assert trusted.requests["/jwks"] - before <= 1


async def test_a_withdrawn_key_stops_counting(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        withdrawn = trusted.token()
        trusted.rotate(keep_old=False)
        await client.verdict(trusted.token())
        with pytest.raises(Unauthenticated, match="does not publish"):
            await client.verdict(withdrawn)


async def test_an_outage_stops_no_known_key_even_through_a_restart(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        trusted.fault = Fault.DOWN
        await site.stop("signer", "issuers")
        await site.start("signer")  # the keys are on disk
        await until(lambda: client.not_ready() is None)
        assert (await client.verdict(trusted.token())).account == "cmsuser"
        await site.start("issuers")
        assert (await client.verdict(trusted.token())).account == "cmsuser"


async def test_keys_do_not_outlive_keep_s(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted:
        config = tree(tmp_path, trusted)
        config["issuer"][0]["keep_s"] = 1.0
        async with identity(config) as site, site.client() as client:
            await client.verdict(trusted.token())
            await site.stop("issuers")
            keyring = next(s for s in site.services["signer"] if s.name == "identity-keyring")
            await until(lambda: keyring.not_ready() is not None)  # type: ignore[attr-defined]
            with pytest.raises(Unavailable, match="no key"):
                await client.verdict(trusted.token())


@pytest.mark.parametrize("fault", [f for f in Fault if f not in (Fault.NONE, Fault.SLOW)])
async def test_faults_at_the_start_are_survived_and_end(tmp_path: Path, fault: Fault) -> None:
    async with issuer(tmp_path) as trusted:
        trusted.fault = fault
        async with identity(tree(tmp_path, trusted), start=False) as site:
            await site.start("issuers", "signer")
            async with site.client() as client:
                await until(lambda: sum(trusted.requests.values()) > 0)
                with pytest.raises(Unavailable, match="no key"):
                    await client.verdict(trusted.token())
                trusted.fault = Fault.NONE
                await site.keys_known()  # looked again after a second
                assert (await client.verdict(trusted.token())).account == "cmsuser"


async def test_a_slow_issuer_slows_nobody_else(tmp_path: Path) -> None:
    ca = ThrowAwayCa(tmp_path / "ca")
    async with ThrowAwayIssuer(ca).running() as slow, ThrowAwayIssuer(ca).running() as good:
        slow.fault = Fault.SLOW
        async with identity(tree(tmp_path, slow, good)) as site, site.client() as client:
            async with asyncio.timeout(1.0):
                assert (await client.verdict(good.token())).account == "vo1user"
                with pytest.raises(Unavailable):
                    await client.verdict(slow.token())


async def test_a_certificate_of_another_ca_is_refused(tmp_path: Path) -> None:
    async with issuer(tmp_path / "ca") as trusted:
        config = tree(tmp_path, trusted)
        config["issuer"][0]["ca_file"] = str(ThrowAwayCa(tmp_path / "other").file)
        async with identity(config, start=False) as site:
            await site.start("issuers", "signer")
            fetcher = site.services["issuers"][0]
            async with site.client() as client:
                with pytest.raises(Unavailable, match="no key"):
                    await client.verdict(trusted.token())
            assert "no keys yet" in fetcher.not_ready()  # type: ignore[attr-defined]
            assert not trusted.requests


async def test_a_local_key_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    trusted = ThrowAwayIssuer(ThrowAwayCa(tmp_path / "ca"))  # never runs: nobody asks it
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(trusted.jwks()))
    config = tree(tmp_path, trusted)
    config["issuer"][0]["jwks_file"] = str(file)
    async with identity(config) as site, site.client() as client:
        await client.verdict(trusted.token())
        trusted.rotate()
        file.write_text(json.dumps(trusted.jwks()))
        assert (await client.verdict(trusted.token())).account == "cmsuser"


def with_claims_from(tmp_path: Path, trusted: ThrowAwayIssuer, source: str) -> dict[str, Any]:
    config = tree(tmp_path, trusted)
    secret = tmp_path / "secret"
    secret.write_text(trusted.secret + "\n")
    config["issuer"][0] |= {
        "claims_from": source,
        "profile": "aarc",
        "introspection_client": trusted.client,
        "introspection_secret_file": str(secret),
    }
    config["mapping"] = [
        {
            "issuer": trusted.url,
            "entitlements": ["urn:mace:egi.eu:group:vo.example.org#aai.egi.eu"],
            "account": "cmsuser",
            "grants": ["compute.create"],
        }
    ]
    return config


MEMBER = {"eduperson_entitlement": ["urn:mace:egi.eu:group:vo.example.org:role=member#aai.egi.eu"]}


async def test_claims_from_userinfo(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(with_claims_from(tmp_path, trusted, "userinfo")) as site,
        site.client() as client,
    ):
        trusted.userinfo = {"sub": "alice", **MEMBER}
        token = trusted.token()
        verdict = await client.verdict(token)
        assert verdict.account == "cmsuser"
        assert verdict.principal.groups == ("/vo.example.org",)
        trusted.userinfo = {"sub": "bob", **MEMBER}
        with pytest.raises(Unauthenticated, match="another subject"):
            await client.verdict(trusted.token())
        trusted.userinfo = {"sub": "alice"}
        with pytest.raises(EdgeError, match="no mapping"):
            await client.verdict(trusted.token())


async def test_claims_from_introspection(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(with_claims_from(tmp_path, trusted, "introspection")) as site,
        site.client() as client,
    ):
        trusted.introspection = {"active": True, "sub": "alice", **MEMBER}
        assert (await client.verdict(trusted.token())).account == "cmsuser"
        trusted.introspection = {"active": False}
        with pytest.raises(Unauthenticated, match="not active"):
            await client.verdict(trusted.token())
        trusted.fault = Fault.BROKEN
        with pytest.raises(EdgeError):
            await client.verdict(trusted.token())


async def test_a_token_of_a_megabyte_reaches_nobody(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        started = time.process_time()
        with pytest.raises(Unauthenticated, match="16384"):
            await client.verdict(trusted.token(junk="x" * 1_000_000))
        assert time.process_time() - started < 1.0


def test_issuers_must_be_https() -> None:
    with pytest.raises(EdgeError, match="https"):
        parse({"site": {"name": "T"}, "issuer": [{"url": "http://x/", "audience": ["a"], "vo": "v"}]})
