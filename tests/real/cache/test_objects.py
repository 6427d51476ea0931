"""Objects: verified before their last byte, whatever a stratum sends, and fetched once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from services.cache.fill import TAIL
from services.cache.names import ObjectName
from tests.real.cache.site import CATALOG, CLOSED, cache, objects
from tests.support import stratum as faults
from tests.support.stratum import DATA, REPOSITORY, Fault, Say, Stratum

LARGE = os.urandom(1 << 20)
LARGE_PATH = "data/" + ObjectName.of(hashlib.sha1(LARGE).hexdigest()).key


def truth(path: str) -> bytes:
    return (DATA / "objects" / path.removeprefix("data/")).read_bytes()


async def test_every_object_of_a_real_repository_comes_through_byte_for_byte(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        client = site.client()
        for _ in range(2):
            for path in objects():
                got = await client.get(site.url(f"data/{path}"))
                assert (got.status, got.body) == (200, (DATA / "objects" / path).read_bytes())
        assert all(times == 1 for times in good.asked.values())
        assert site.outcomes()["memory"] == len(objects())
        client.close()


async def test_reverse_form_and_forward_form_share_one_copy(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        forward = await site.get(CATALOG)
        reverse = await site.fetch(f"/cvmfs/{REPOSITORY}/{CATALOG}")
        assert forward.body == reverse.body == truth(CATALOG)
        assert good.asked.total() == 1


@pytest.mark.parametrize(
    "fault",
    [
        faults.flipped,
        faults.truncated,
        faults.shorter_promise,
        faults.stalled,
        faults.mute,
        faults.dripping,
        faults.status(500),
        faults.status(503),
        faults.status(302),
        faults.status(404),
        faults.status(429),
    ],
    ids=lambda fault: getattr(fault, "__qualname__", "fault").partition(".")[0],
)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
async def test_a_faulty_stratum_is_passed_over(tmp_path: Path, fault: Fault, large: bool) -> None:
    path, right = (LARGE_PATH, LARGE) if large else (CATALOG, truth(CATALOG))
    async with Stratum().running() as bad, Stratum().running() as good, cache(tmp_path, [bad, good]) as site:
        for one in (bad, good):
            one.objects[LARGE_PATH] = LARGE
        bad.fault(path, fault)
        got = await site.get(path)
        if got.whole:
            assert (got.status, got.body) == (200, right)
        else:  # some of the wrong bytes had left: the client is cut short and asks again
            assert large and len(got.body) <= len(right) - 1
            again = await site.get(path)
            assert (again.status, again.body) == (200, right)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
async def test_wrong_bytes_are_never_served_whole_nor_stored(tmp_path: Path, large: bool) -> None:
    path, right = (LARGE_PATH, LARGE) if large else (CATALOG, truth(CATALOG))
    async with Stratum().running() as bad, cache(tmp_path, [bad]) as site:
        bad.objects[LARGE_PATH] = LARGE
        bad.fault(path, faults.flipped)
        got = await site.get(path)
        assert got.status == 502 or (not got.whole and len(got.body) <= len(right) - TAIL)
        assert site.service.origins.all()[0].figures.damaged >= 1
        bad.fault(path, None)
        assert (await site.get(path)).body == right
        await site.service.keeper.flush()
        name = ObjectName(path.removeprefix("data/").rstrip("C"))
        assert site.service.store.path(name).read_bytes() == right


async def test_more_than_promised_costs_the_connection_only(tmp_path: Path) -> None:
    async with Stratum().running() as bad, cache(tmp_path, [bad]) as site:
        bad.fault(CATALOG, faults.longer)
        assert (await site.get(CATALOG)).body == truth(CATALOG)


async def test_a_body_without_length_is_served_with_one(tmp_path: Path) -> None:
    def chunked(say: Say) -> Say:
        say.chunked = True
        return say

    def until_close(say: Say) -> Say:
        say.length, say.close = -1, True
        return say

    other = "data/46/ec41ea8c0140dd1be2dce8cd008f4d7d98a7bfM"
    async with Stratum().running() as odd, cache(tmp_path, [odd]) as site:
        odd.objects[LARGE_PATH] = LARGE
        odd.fault(CATALOG, chunked)
        odd.fault(LARGE_PATH, chunked)
        odd.fault(other, until_close)
        for path, right in ((CATALOG, truth(CATALOG)), (LARGE_PATH, LARGE), (other, truth(other))):
            got = await site.get(path)
            assert (got.body, got.headers["content-length"]) == (right, str(len(right)))


async def test_a_broken_off_body_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with Stratum().running() as bad, Stratum().running() as good, cache(tmp_path, [bad, good]) as site:
        bad.objects[LARGE_PATH] = good.objects[LARGE_PATH] = LARGE
        bad.fault(LARGE_PATH, faults.truncated)
        got = await site.get(LARGE_PATH)
        assert got.whole and got.body == LARGE
        assert "range" in good.requests[0].headers


async def test_many_waiters_one_fetch_and_the_first_may_leave(tmp_path: Path) -> None:
    async with Stratum().running() as slow, cache(tmp_path, [slow], upstream={"stall_s": 10}) as site:
        slow.objects[LARGE_PATH] = LARGE
        go_on = asyncio.Event()

        def half(say: Say) -> Say:
            say.stall_after, say.go_on = len(LARGE) // 2, go_on
            return say

        slow.fault(LARGE_PATH, half)
        first = site.client()
        await first.send(f"GET {site.url(LARGE_PATH)} HTTP/1.1\r\nHost: s\r\n\r\n".encode())
        assert (await first.head())[0] == 200
        early = await first.some(100_000)  # it streams while it comes
        others = [asyncio.create_task(site.get(LARGE_PATH)) for _ in range(50)]
        first.close()
        go_on.set()
        assert early == LARGE[:100_000]
        assert {(await other).body for other in others} == {LARGE}
        assert slow.asked.total() == 1


async def test_no_cache_means_drop_fetch_and_verify_again(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        await site.get(CATALOG)
        again = await site.get(CATALOG, {"Cache-Control": "no-cache", "Pragma": "no-cache"})
        assert again.body == truth(CATALOG)
        assert good.asked.total() == 2


async def test_a_range_of_a_cached_object(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        good.objects[LARGE_PATH] = LARGE
        for path, right in ((CATALOG, truth(CATALOG)), (LARGE_PATH, LARGE)):
            for _ in ("cold", "hot"):
                got = await site.get(path, {"Range": "bytes=100-299"})
                assert (got.status, got.body) == (206, right[100:300])
                assert got.headers["content-range"] == f"bytes 100-299/{len(right)}"
            assert (await site.get(path, {"Range": "bytes=99999999-"})).status == 416
            assert (await site.get(path, {"Range": "bytes=-5"})).body == right[-5:]


async def test_head_says_what_get_would(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        for _ in ("cold", "hot"):
            got = await site.get(CATALOG, method="HEAD")
            assert got.headers["content-length"] == str(len(truth(CATALOG)))


async def test_an_object_nobody_has_is_404(tmp_path: Path) -> None:
    async with Stratum().running() as one, Stratum().running() as two, cache(tmp_path, [one, two]) as site:
        assert (await site.get("data/00/" + "0" * 38)).status == 404
        assert (one.asked.total(), two.asked.total()) == (1, 1)


async def test_all_strata_down_is_the_strata_s_fault(tmp_path: Path) -> None:
    dead = Stratum()
    dead.port = faults.unused_port()
    async with cache(tmp_path, [dead]) as site:
        assert (await site.get(CATALOG)).status == 502


async def test_all_strata_silent_is_a_timeout_before_the_client_s_own(tmp_path: Path) -> None:
    async with Stratum().running() as silent, cache(tmp_path, [silent]) as site:
        silent.fault(CATALOG, faults.mute)
        clock = asyncio.get_running_loop().time
        started = clock()
        assert (await site.get(CATALOG)).status == 504
        assert clock() - started < 5


async def test_a_slow_stratum_is_raced_by_the_next(tmp_path: Path) -> None:
    async with (
        Stratum().running() as slow,
        Stratum().running() as fast,
        cache(tmp_path, [slow, fast]) as site,
    ):
        slow.fault(CATALOG, faults.mute)
        assert (await site.get(CATALOG)).body == truth(CATALOG)
        assert site.service.origins.all()[1].figures.raced == 1


async def test_an_upstream_that_fails_again_and_again_is_asked_last(tmp_path: Path) -> None:
    async with Stratum().running() as bad, Stratum().running() as good:
        bad.fault("", faults.status(500))
        async with cache(tmp_path, [bad, good]) as site:
            for path in objects()[:20]:
                assert (await site.get(f"data/{path}")).status == 200
            assert bad.asked.total() == site.service.routes.repository(REPOSITORY).origins[0].limits.failures


async def test_too_many_fetches_close_the_connection_so_that_the_client_takes_another_proxy(
    tmp_path: Path,
) -> None:
    async with Stratum().running() as slow, cache(tmp_path, [slow], fills=1) as site:
        slow.fault("", faults.mute)
        waiting = asyncio.create_task(site.get(CATALOG))
        await slow.until_asked(1)
        assert await site.get("data/" + objects()[0]) == CLOSED
        waiting.cancel()
