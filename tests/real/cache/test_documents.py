"""Manifests and whitelists: fresh for their time, believed only with their signatures, never older."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real.cache.forge import Forge, new_key
from tests.real.cache.site import CATALOG, cache
from tests.support import stratum as faults
from tests.support.stratum import DATA, REPOSITORY, Say, Stratum

MANIFEST, WHITELIST = ".cvmfspublished", ".cvmfswhitelist"
NOW_AND_AGAIN = 1e-6  # fresh_s so short that every request asks the stratum


def document(revision: str, name: str) -> bytes:
    return (DATA / revision / name).read_bytes()


async def test_a_manifest_is_kept_for_its_time_and_then_fetched_anew(tmp_path: Path) -> None:
    async with Stratum(revision="rev1").running() as good:
        async with cache(tmp_path, [good]) as site:
            for _ in range(3):
                assert (await site.get(MANIFEST)).body == document("rev1", MANIFEST)
            assert good.asked[f"/cvmfs/{REPOSITORY}/{MANIFEST}"] == 1
            assert int((await site.get(MANIFEST)).headers["age"]) < 61
        good.revision = "rev2"
        async with cache(tmp_path, [good], fresh_s=NOW_AND_AGAIN) as site:
            assert (await site.get(MANIFEST)).body == document("rev2", MANIFEST)


async def test_the_chain_of_a_real_repository_holds(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        assert (await site.get(MANIFEST)).status == 200
        trust = site.service.routes.repository(REPOSITORY).documents.trust
        assert trust.revision == 3
        assert trust.whitelist_expires > time.time()
        assert trust.certificate_expires > time.time()


async def test_an_older_revision_is_refused_and_the_newer_one_kept_on_serving(tmp_path: Path) -> None:
    async with (
        Stratum(revision="rev2").running() as turning,
        cache(tmp_path, [turning], fresh_s=NOW_AND_AGAIN) as site,
    ):
        assert (await site.get(MANIFEST)).body == document("rev2", MANIFEST)
        turning.revision = "rev1"
        got = await site.get(MANIFEST)
        assert got.body == document("rev2", MANIFEST)
        assert site.service.routes.repository(REPOSITORY).documents.trust.rollbacks == 1
        assert site.outcomes()["stale"] == 1


async def test_rollback_is_refused_after_a_restart_too(tmp_path: Path) -> None:
    async with Stratum(revision="rev2").running() as turning:
        async with cache(tmp_path, [turning]) as site:
            await site.get(MANIFEST)
        turning.revision = "rev1"
        async with cache(tmp_path, [turning], fresh_s=NOW_AND_AGAIN, stale_s=0) as site:
            assert (await site.get(MANIFEST)).status == 502


async def test_a_lagging_stratum_is_passed_over(tmp_path: Path) -> None:
    async with Stratum(revision="rev2").running() as ahead, Stratum(revision="rev1").running() as behind:
        async with cache(tmp_path, [ahead]) as site:
            await site.get(MANIFEST)
        async with cache(tmp_path, [behind, ahead], fresh_s=NOW_AND_AGAIN) as site:
            assert (await site.get(MANIFEST)).body == document("rev2", MANIFEST)
            assert "stale" not in site.outcomes()


def _tampered(say: Say) -> Say:
    say.body = say.body.replace(b"\nS3\n", b"\nS9\n").replace(b"\nE2046", b"\nE2066")
    return say


def _unsigned(say: Say) -> Say:
    say.body = say.body.partition(b"\n--\n")[0] + b"\n"
    return say


@pytest.mark.parametrize(
    "fault", [_tampered, _unsigned, faults.flipped, faults.truncated, faults.status(500)]
)
@pytest.mark.parametrize("file", [MANIFEST, WHITELIST])
async def test_a_broken_document_comes_from_the_next_stratum(
    tmp_path: Path, fault: Callable[[Say], Say], file: str
) -> None:
    async with Stratum().running() as bad, Stratum().running() as good, cache(tmp_path, [bad, good]) as site:
        bad.fault(file, fault)
        got = await site.get(file)
        assert (got.status, got.body) == (200, document("rev2", file))


async def test_stale_documents_serve_in_an_outage_and_say_their_age(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good], fresh_s=NOW_AND_AGAIN) as site:
        await site.get(MANIFEST)
        good.fault(MANIFEST, faults.status(503))
        got = await site.get(MANIFEST)
        assert (got.status, got.body) == (200, document("rev2", MANIFEST))
        assert "age" in got.headers


@pytest.fixture(scope="module")
def forge() -> Forge:
    return Forge()


def _keys(tmp_path: Path, forge: Forge) -> Path:
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "master.pub"
    file.write_bytes(forge.public())
    return file


def _repositories(stratum: Stratum, key: Path) -> list[dict[str, object]]:
    return [{"name": REPOSITORY, "stratums": [stratum.url], "keys": [str(key)]}]


async def _status(tmp_path: Path, forge: Forge, stratum: Stratum, file: str = MANIFEST) -> int:
    repositories = _repositories(stratum, _keys(tmp_path, forge))
    async with cache(tmp_path, [stratum], repository=repositories) as site:
        return (await site.get(file)).status


async def test_a_repository_of_our_own_making_is_believed(tmp_path: Path, forge: Forge) -> None:
    async with Stratum().running() as stratum:
        stratum.objects = forge.objects(5)
        assert await _status(tmp_path, forge, stratum) == 200


async def test_an_expired_whitelist_is_refused_and_so_is_its_manifest(tmp_path: Path, forge: Forge) -> None:
    async with Stratum().running() as stratum:
        stratum.objects = forge.objects(5, expires=time.time() - 60)
        assert await _status(tmp_path / "a", forge, stratum, WHITELIST) == 502
        assert await _status(tmp_path / "b", forge, stratum, MANIFEST) == 502


async def test_a_whitelist_by_another_master_is_refused(tmp_path: Path, forge: Forge) -> None:
    async with Stratum().running() as stratum:
        impostor = Forge(master=new_key(), signer=forge.signer)
        stratum.objects = impostor.objects(5)
        assert await _status(tmp_path, forge, stratum) == 502


async def test_a_manifest_by_a_certificate_outside_the_whitelist_is_refused(
    tmp_path: Path, forge: Forge
) -> None:
    async with Stratum().running() as stratum:
        impostor = Forge(master=forge.master, signer=new_key())
        stratum.objects = {**impostor.objects(5), WHITELIST: forge.objects(5)[WHITELIST]}
        assert await _status(tmp_path, forge, stratum) == 502


async def test_a_manifest_of_another_repository_is_refused(tmp_path: Path, forge: Forge) -> None:
    async with Stratum().running() as stratum:
        other = Forge(name="other.example.org", master=forge.master, signer=forge.signer)
        stratum.objects = other.objects(5)
        assert await _status(tmp_path, forge, stratum) == 502


async def test_names_under_a_wildcard_share_its_strata(tmp_path: Path) -> None:
    async with Stratum().running() as good:
        repositories = [{"name": "*.example.org", "stratums": [good.url]}]
        async with cache(tmp_path, [good], repository=repositories) as site:
            assert (await site.get(CATALOG)).status == 200
            assert (await site.fetch("/cvmfs/elsewhere.org/.cvmfspublished")).status == 403


async def test_the_order_of_strata_is_ours_or_the_stratum_s(tmp_path: Path) -> None:
    question = "api/v1.0/geo/proxy.site.org/far.org,127.0.0.1,near.org"
    async with Stratum(lambda asked: Say(b"3,1,2\n")).running() as stratum:
        repository = {"name": REPOSITORY, "stratums": ["http://near.org", stratum.url]}
        async with cache(tmp_path / "a", [stratum], repository=[repository]) as site:
            assert (await site.fetch(f"/cvmfs/{REPOSITORY}/{question}")).body == b"3,2,1\n"
        repository = {"name": REPOSITORY, "stratums": [stratum.url], "geo": "stratum"}
        async with cache(tmp_path / "b", [stratum], repository=[repository]) as site:
            for _ in range(2):
                assert (await site.get(question)).body == b"3,1,2\n"
            assert stratum.asked.total() == 1
