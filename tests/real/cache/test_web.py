"""Plain HTTP by RFC 9111: Frontier's way of asking, and nothing cached that is somebody's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.real.cache.site import CLOSED, Site, cache
from tests.support import stratum as faults
from tests.support.stratum import Asked, Say, Stratum

FRONTIER = (
    "/FrontierProd/Frontier/type=frontier_request:1:DEFAULT&encoding=BLOBzip5&p1="
    + "eNorTi3OTS0qBAAKLgMr" * 1000
)
MODIFIED = "Mon, 02 Nov 2026 10:00:00 GMT"


@asynccontextmanager
async def destination(
    tmp_path: Path, server: Stratum, *, fills: int = 512, **extra: Any
) -> AsyncIterator[Site]:
    section = {"name": "frontier", "hosts": [server.authority], **extra}
    async with cache(tmp_path, [server], destination=[section], repository=[], fills=fills) as site:
        yield site


def web(**headers: str) -> Stratum:
    """A server whose every answer has these headers and says how often it was asked."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = 0

    def answer(request: Asked) -> Say:
        nonlocal asked
        asked += 1
        etag, since = request.headers.get("if-none-match"), request.headers.get("if-modified-since")
        if (etag and etag == fields.get("ETag")) or (since and since == fields.get("Last-Modified")):
            return Say(b"", 304, fields, length=-1)
        return Say(b"answer %d" % asked, headers={"Date": formatdate(usegmt=True), **fields})

    return Stratum(answer)


async def test_frontier_s_long_urls_are_cached(tmp_path: Path) -> None:
    async with web(Cache_Control="max-age=60").running() as server, destination(tmp_path, server) as site:
        for _ in range(3):
            assert (await site.fetch(server.url + FRONTIER)).body == b"answer 1"
        assert server.asked.total() == 1


async def test_if_modified_since_is_answered_from_the_cache(tmp_path: Path) -> None:
    fields = {"Cache_Control": "max-age=60", "Last_Modified": MODIFIED}
    async with web(**fields).running() as server, destination(tmp_path, server) as site:
        assert (await site.fetch(server.url + FRONTIER)).headers["last-modified"] == MODIFIED
        got = await site.fetch(server.url + FRONTIER, {"If-Modified-Since": MODIFIED})
        assert (got.status, got.body) == (304, b"")
        assert server.asked.total() == 1


@pytest.mark.parametrize("validator", [{"Last_Modified": MODIFIED}, {"ETag": '"v1"'}])
async def test_a_stale_answer_is_revalidated_not_fetched(tmp_path: Path, validator: dict[str, str]) -> None:
    fields = {"Cache_Control": "max-age=0", **validator}
    async with web(**fields).running() as server, destination(tmp_path, server) as site:
        for _ in range(3):
            got = await site.fetch(server.url + "/x")
            assert (got.status, got.body) == (200, b"answer 1")
        assert server.asked.total() == 3
        assert {"if-none-match", "if-modified-since"} & server.requests[-1].headers.keys()


async def test_a_client_s_reload_revalidates(tmp_path: Path) -> None:
    fields = {"Cache_Control": "max-age=60", "Last_Modified": MODIFIED}
    async with web(**fields).running() as server, destination(tmp_path, server) as site:
        await site.fetch(server.url + "/x")
        assert (await site.fetch(server.url + "/x", {"Cache-Control": "max-age=0"})).body == b"answer 1"
        assert server.asked.total() == 2


async def test_variants_are_kept_apart(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Say:
        body = asked.headers.get("accept-language", "none").encode()
        return Say(body, headers={"Vary": "Accept-Language", "Cache-Control": "max-age=60"})

    async with Stratum(answer).running() as server, destination(tmp_path, server) as site:
        for _ in range(2):
            for language in ("de", "it", "de"):
                got = await site.fetch(server.url + "/x", {"Accept-Language": language})
                assert got.body == language.encode()
        assert server.asked.total() == 2


@pytest.mark.parametrize(
    ("response", "request_fields"),
    [
        ({"Cache_Control": "no-store"}, {}),
        ({"Cache_Control": "private, max-age=60"}, {}),
        ({"Cache_Control": "max-age=60", "Set_Cookie": "a=b"}, {}),
        ({"Cache_Control": "public, max-age=60"}, {"Authorization": "Bearer mine"}),
        ({"Cache_Control": "public, max-age=60"}, {"Cookie": "me"}),
    ],
)
async def test_what_is_somebody_s_own_is_not_shared(
    tmp_path: Path, response: dict[str, str], request_fields: dict[str, str]
) -> None:
    async with web(**response).running() as server, destination(tmp_path, server) as site:
        for number in (1, 2):
            got = await site.fetch(server.url + "/x", request_fields)
            assert got.body == b"answer %d" % number


async def test_an_answer_for_one_alone_is_not_handed_to_those_who_waited_with_it(tmp_path: Path) -> None:
    hold = asyncio.Event()
    count = 0

    def answer(_: Asked) -> Say:
        nonlocal count
        count += 1
        return Say(b"%d" % count, headers={"Cache-Control": "private"}, stall_after=0, go_on=hold)

    async with Stratum(answer).running() as server, destination(tmp_path, server) as site:
        asking = [asyncio.create_task(site.fetch(server.url + "/x")) for _ in range(5)]
        await server.until_asked(5)
        hold.set()
        got = [await one for one in asking]
        assert sorted(one.body for one in got) == [b"1", b"2", b"3", b"4", b"5"]


async def test_many_waiters_share_one_fetch(tmp_path: Path) -> None:
    hold = asyncio.Event()

    def answer(_: Asked) -> Say:
        return Say(b"x" * 1000, headers={"Cache-Control": "max-age=60"}, stall_after=500, go_on=hold)

    async with Stratum(answer).running() as server, destination(tmp_path, server) as site:
        asking = [asyncio.create_task(site.fetch(server.url + "/x")) for _ in range(20)]
        await server.until_asked(1)
        hold.set()
        assert {(await one).body for one in asking} == {b"x" * 1000}
        assert server.asked.total() == 1


async def test_not_found_is_remembered_for_a_while(tmp_path: Path) -> None:
    async with Stratum(lambda _: Say(b"no", 404)).running() as server, destination(tmp_path, server) as site:
        for _ in range(2):
            got = await site.fetch(server.url + "/x")
            assert (got.status, got.body) == (404, b"no")
        assert server.asked.total() == 1


async def test_stale_serves_in_an_outage_unless_forbidden(tmp_path: Path) -> None:
    async with (
        web(Cache_Control="max-age=0", ETag='"1"').running() as server,
        destination(tmp_path, server) as site,
    ):
        await site.fetch(server.url + "/x")
        server.fault("/x", faults.status(503))
        assert (await site.fetch(server.url + "/x")).body == b"answer 1"
    async with (
        web(Cache_Control="max-age=0, must-revalidate").running() as server,
        destination(tmp_path / "strict", server) as site,
    ):
        await site.fetch(server.url + "/x")
        server.fault("/x", faults.status(503))
        assert (await site.fetch(server.url + "/x")).status == 502


async def test_stored_answers_outlive_a_restart(tmp_path: Path) -> None:
    async with web(Cache_Control="max-age=600").running() as server:
        for _ in range(2):
            async with destination(tmp_path, server) as site:
                assert (await site.fetch(server.url + "/x")).body == b"answer 1"


async def test_a_broken_off_answer_is_not_kept(tmp_path: Path) -> None:
    async with web(Cache_Control="max-age=600").running() as server, destination(tmp_path, server) as site:
        server.fault("/x", faults.truncated)
        got = await site.fetch(server.url + "/x")
        assert got.status == 0 or not got.whole
        server.fault("/x", None)
        assert (await site.fetch(server.url + "/x")).status == 200


async def test_only_configured_destinations_are_fetched(tmp_path: Path) -> None:
    async with (
        web().running() as server,
        web().running() as other,
        destination(tmp_path, server, prefix="/Frontier") as site,
    ):
        assert (await site.fetch(other.url + "/Frontier")).status == 403
        assert (await site.fetch(server.url + "/elsewhere")).status == 403
        assert (await site.fetch("/Frontier", {"Host": server.authority})).status == 403
        assert (server.asked.total(), other.asked.total()) == (0, 0)


async def test_a_forged_host_poisons_nothing(tmp_path: Path) -> None:
    async with web(Cache_Control="max-age=60").running() as server, destination(tmp_path, server) as site:
        await site.fetch(server.url + "/x", {"Host": "evil.example.org"})
        assert server.requests[0].headers["host"] == server.authority
        assert (await site.fetch(server.url + "/x")).body == b"answer 1"


async def test_a_request_that_comes_around_is_refused(tmp_path: Path) -> None:
    async with web(Cache_Control="max-age=60").running() as server, destination(tmp_path, server) as site:
        await site.fetch(server.url + "/x")
        via = server.requests[0].headers["via"]
        assert (await site.fetch(server.url + "/y", {"Via": via})).status == 403


async def test_fetches_at_once_are_limited_though_their_clients_leave(tmp_path: Path) -> None:
    silent = Stratum(lambda _: faults.mute(Say(b"")))
    async with silent.running() as server, destination(tmp_path, server, fills=2) as site:
        for number in range(2):
            client = site.client()
            await client.send(f"GET {server.url}/{number} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            await server.until_asked(number + 1)
            client.close()
        assert await site.fetch(f"{server.url}/2") == CLOSED
        assert server.asked.total() == 2


async def test_a_lifetime_in_foreign_digits_is_none(tmp_path: Path) -> None:
    async with web(Cache_Control="max-age=\xb2").running() as server, destination(tmp_path, server) as site:
        for number in (1, 2):
            got = await site.fetch(server.url + "/x", {"Cache-Control": "max-age=60"})
            assert got.body == b"answer %d" % number
