"""The administrator's commands against a running cache."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from isal import isal_zlib

from tests.real.cache.site import CATALOG, Site, cache, objects
from tests.support import stratum as faults
from tests.support.stratum import DATA, REPOSITORY, Stratum

MANIFEST = ".cvmfspublished"


@asynccontextmanager
async def site_with_file(tmp_path: Path, stratum: Stratum) -> AsyncIterator[tuple[Site, Path]]:
    """A running cache and a configuration file that names it."""
    async with cache(tmp_path, [stratum]) as site:
        file = tmp_path / "edged.toml"
        file.write_text(
            f'[site]\nname = "T"\n[runtime]\nrun = "{tmp_path}/run"\nstate = "{tmp_path}"\n'
            f'[cache]\nlisten = ["{site.address}"]\nstore = "{tmp_path}/store"\n'
            f'[[cache.repository]]\nname = "{REPOSITORY}"\nstratums = ["{stratum.url}"]\n'
        )
        yield site, file


async def edged(file: Path, *words: str) -> tuple[int, str]:
    argv = (sys.executable, "-m", "edged", "cache", words[0], "--config", str(file), *words[1:])
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_stat_tells_what_passed(tmp_path: Path) -> None:
    async with Stratum().running() as good, site_with_file(tmp_path, good) as (site, file):
        for path in (CATALOG, CATALOG, MANIFEST):
            await site.get(path)
        code, text = await edged(file, "stat", "--json")
        assert code == 0, text
        page = json.loads(text)
        assert (page["requests"]["memory"], page["requests"]["miss"]) == (1, 2)
        assert page["repositories"][REPOSITORY]["revision"] == 3
        code, text = await edged(file, "stat")
        assert code == 0 and f"{REPOSITORY}: revision 3" in text


async def test_stat_without_a_cache_says_so(tmp_path: Path) -> None:
    async with Stratum().running() as good, site_with_file(tmp_path, good) as (_, file):
        pass
    code, text = await edged(file, "stat")
    assert code == 1 and "no cache is running" in text


async def test_purge_forgets_an_object_a_repository_or_everything(tmp_path: Path) -> None:
    async with Stratum().running() as good, site_with_file(tmp_path, good) as (site, file):
        for words in (("--object", CATALOG[5:-1].replace("/", "")), ("--all",)):
            await site.get(CATALOG)
            await site.service.keeper.flush()
            code, text = await edged(file, "purge", *words)
            assert (code, text) == (0, "4096 bytes freed\n")
        await site.get(CATALOG)
        assert good.asked[f"/cvmfs/{REPOSITORY}/{CATALOG}"] == 3
        await site.get(MANIFEST)
        assert (await edged(file, "purge", "--repository", REPOSITORY))[0] == 0
        await site.get(MANIFEST)
        assert good.asked[f"/cvmfs/{REPOSITORY}/{MANIFEST}"] == 2
        assert (await edged(file, "purge"))[0] == 2


async def test_verify_finds_what_is_damaged(tmp_path: Path) -> None:
    async with Stratum().running() as good, site_with_file(tmp_path, good) as (site, file):
        for path in objects()[:10]:
            await site.get(f"data/{path}")
        await site.service.keeper.flush()
        assert (await edged(file, "verify"))[0] == 0
        victim = next(iter(site.service.store.names()))
        site.service.store.path(victim).write_bytes(b"damaged")
        code, text = await edged(file, "verify")
        assert code == 1 and f"removed: {victim.key}" in text
        assert not site.service.store.path(victim).exists()


async def test_warm_fetches_a_whole_tree_once(tmp_path: Path) -> None:
    async with Stratum().running() as good, site_with_file(tmp_path, good) as (site, file):
        code, text = await edged(file, "warm", REPOSITORY)
        assert code == 0, text
        await site.service.keeper.flush()
        held = {name.key for name in site.service.store.names()}
        asked = good.asked.total()
        assert "0 failed" in text and "4 catalogs" in text
        catalogs = sum(path.endswith("C") for path in objects())
        assert len(objects()) - catalogs <= len(held) <= len(objects())
        assert (await edged(file, "warm", REPOSITORY))[0] == 0
        assert good.asked.total() == asked


async def test_warm_part_of_a_tree_or_a_list(tmp_path: Path) -> None:
    async with Stratum().running() as good, site_with_file(tmp_path, good) as (site, file):
        code, text = await edged(file, "warm", REPOSITORY, "--path", "/calib")
        assert code == 0 and "2 catalogs" in text
        listing = tmp_path / "list"
        listing.write_text("\n".join(f"data/{path}" for path in objects()))
        assert (await edged(file, "warm", REPOSITORY, "--list", str(listing)))[0] == 0
        await site.service.keeper.flush()
        assert len(list(site.service.store.names())) == len(objects())


async def test_an_alien_cache_is_filled_with_unpacked_objects_and_named_last(tmp_path: Path) -> None:
    alien = tmp_path / "alien"
    async with Stratum().running() as good, site_with_file(tmp_path, good) as (_, file):
        broken = next(path for path in objects() if path.endswith("P"))
        good.fault(broken, faults.flipped)
        code, text = await edged(file, "warm", REPOSITORY, "--alien", str(alien))
        assert code == 1 and "1 failed" in text
        assert not (alien / f"cvmfschecksum.{REPOSITORY}").exists()
        good.fault(broken, None)
        code, text = await edged(file, "warm", REPOSITORY, "--alien", str(alien))
        assert code == 0, text
    for path in objects():
        place = alien / path.rstrip("CHXMP")
        if place.exists():
            assert place.read_bytes() == isal_zlib.decompress((DATA / "objects" / path).read_bytes())
    root = CATALOG[5:-1].replace("/", "")
    assert (alien / f"cvmfschecksum.{REPOSITORY}").read_text() == f"{root}T1795174727"
    assert (alien / CATALOG[5:-1]).read_bytes().startswith(b"SQLite format 3")


async def test_client_config_is_what_nodes_need(tmp_path: Path) -> None:
    async with Stratum().running() as good, site_with_file(tmp_path, good) as (site, file):
        _, text = await edged(file, "client-config", "--others", "10.0.0.2:3128")
        assert f'CVMFS_HTTP_PROXY="http://{site.address}|http://10.0.0.2:3128"' in text
