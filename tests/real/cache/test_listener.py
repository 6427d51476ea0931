"""The listener over real sockets: limits, smuggling, and connections that misbehave."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import struct
from pathlib import Path

import pytest

from tests.real.cache.site import CATALOG, FAST, Site, cache
from tests.real.cache.test_objects import LARGE, LARGE_PATH, truth
from tests.support import stratum as faults
from tests.support.stratum import REPOSITORY, Stratum
from tests.support.waiting import until_async

SMUGGLING = [
    b"Content-Length: 30\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding: xchunked",
    b"Content-Length: 5\r\nContent-Length: 5",
    b"Content-Length: 05",
    b"Content-Length: -1",
    b"Host: other",
    b" folded",
    b"X: a\nTransfer-Encoding: chunked",
    b"X: a\rTransfer-Encoding: chunked",
    b"X: a\x00b",
]


@pytest.mark.parametrize("field", SMUGGLING, ids=range(len(SMUGGLING)))
async def test_two_readings_of_one_request_are_refused_and_the_rest_of_it_never_read(
    tmp_path: Path, field: bytes
) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        client = site.client()
        inner = b"GET /cvmfs/software.example.org/.cvmfspublished HTTP/1.1\r\nHost: s\r\n\r\n"
        line = f"GET {site.url(CATALOG)} HTTP/1.1\r\nHost: s\r\n".encode()
        await client.send(line + field + b"\r\n\r\n0\r\n\r\n" + inner)
        assert (await client.read()).status == 400
        assert await client.ended()
        assert good.asked.total() == 0


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        client = site.client()
        paths = [CATALOG, ".cvmfspublished", "data/00/" + "0" * 38, CATALOG]
        asked = b"".join(f"GET {site.url(path)} HTTP/1.1\r\nHost: s\r\n\r\n".encode() for path in paths)
        for start in range(0, len(asked), 50):
            await client.send(asked[start : start + 50])
        assert [(await client.read()).status for _ in paths] == [200, 200, 404, 200]
        client.close()


async def test_each_way_of_keeping_or_closing(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        for _ in ("cold", "hot"):
            for tail, stays in (
                (b"HTTP/1.0\r\n\r\n", False),
                (b"HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
                (b"HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n", False),
                (b"HTTP/1.1\r\nHost: s\r\n\r\n", True),
            ):
                client = site.client()
                await client.send(f"GET {site.url(CATALOG)} ".encode() + tail)
                assert (await client.read()).body == truth(CATALOG)
                if stays:
                    assert (await client.get(site.url(CATALOG))).status == 200
                    client.close()
                else:
                    assert await client.ended()


async def test_a_head_without_end_is_cut(tmp_path: Path) -> None:
    limits = {"header_bytes": 4096, "header_s": 1}
    async with Stratum().running() as good, cache(tmp_path, [good], limits=limits) as site:
        large = site.client()
        await large.send(b"GET /x HTTP/1.1\r\nHost: s\r\nX: " + b"y" * 5000)
        assert (await large.read()).status == 431
        dribbling = site.client()
        await dribbling.send(b"GET /x HTTP/1.1\r\nHo")
        async with asyncio.timeout(5):
            assert await dribbling.ended()
        assert site.service.listener.timed_out == 1


async def test_connections_per_source_are_limited_and_given_back(tmp_path: Path) -> None:
    limits = {"connections_per_source": 2}
    async with Stratum().running() as good, cache(tmp_path, [good], limits=limits) as site:
        held = [site.client(), site.client()]
        for client in held:
            assert (await client.get(site.url(CATALOG))).status == 200
        refused = site.client()
        await refused.send(b"x")
        assert await refused.ended()
        held[0].close()
        await _until(lambda: site.service.listener.connections == 1)
        assert (await site.get(CATALOG)).status == 200
        held[1].close()


async def test_other_networks_are_not_served(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good], sources=["10.0.0.0/8"]) as site:
        stranger = site.client()
        await stranger.send(b"GET / HTTP/1.1\r\n\r\n")
        assert await stranger.ended()
        assert site.service.listener.unwelcome == 1


async def test_a_client_that_takes_nothing_costs_no_memory_and_harms_nobody(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        good.objects[LARGE_PATH] = LARGE
        await site.get(LARGE_PATH)
        lazy = [site.client() for _ in range(20)]
        for client in lazy:
            await client.send(f"GET {site.url(LARGE_PATH)} HTTP/1.1\r\nHost: s\r\n\r\n".encode() * 5)
        assert (await site.get(LARGE_PATH)).body == LARGE
        for client in lazy:
            for _ in range(5):
                assert (await client.read()).body == LARGE
            client.close()


async def test_a_client_that_leaves_ends_its_own_wait_only(tmp_path: Path) -> None:
    async with (
        Stratum().running() as slow,
        cache(tmp_path, [slow], upstream={**FAST, "answer_s": 4.5}) as site,
    ):
        slow.fault(CATALOG, faults.mute)
        leaving = site.client()
        await leaving.send(f"GET {site.url(CATALOG)} HTTP/1.1\r\nHost: s\r\n\r\n".encode())
        await slow.until_asked(1)
        leaving.close()
        await _until(lambda: site.service.listener.connections == 0)
        assert site.service.objects.filling == 1


async def test_stopping_lets_answers_finish(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    def slowly(say: faults.Say) -> faults.Say:
        say.stall_after, say.go_on = len(LARGE) // 2, go_on
        return say

    async with Stratum().running() as slow:
        slow.objects[LARGE_PATH] = LARGE
        slow.fault(LARGE_PATH, slowly)
        async with cache(tmp_path, [slow], upstream={**FAST, "stall_s": 10}) as site:
            asking = asyncio.create_task(site.get(LARGE_PATH))
            await slow.until_asked(1)
            asyncio.get_running_loop().call_later(0.2, go_on.set)
        assert (await asking).body == LARGE


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_as_a_client_of_the_proxy(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        for extra in ([], ["--http1.0"], ["-r", "0-9"], ["--http2"]):
            code = await _curl(site, extra, site.url(CATALOG))
            assert code == ("206" if "-r" in extra else "200")
        assert await _curl(site, ["-T", str(__file__)], site.url(CATALOG)) in ("400", "405")
        assert await _curl(site, ["-p"], site.url(CATALOG)) == "000"


async def test_the_access_log_tells_every_request_once(tmp_path: Path) -> None:
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        await site.get(CATALOG)
        await site.get(CATALOG)
        await site.get('data/"injected":1')
        await site.service.access.flush()
        lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
        assert [(line["status"], line["outcome"]) for line in lines] == [
            (200, "miss"),
            (200, "memory"),
            (400, "refused"),
        ]
        assert all(line["client"] == "127.0.0.1" for line in lines)
        assert lines[0]["bytes"] == lines[1]["bytes"] == len(truth(CATALOG))
        assert lines[1]["url"].endswith(f"/cvmfs/{REPOSITORY}/{CATALOG}")


async def _curl(site: Site, extra: list[str], url: str) -> str:
    argv = [
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-x",
        f"http://{site.address}",
        *extra,
        url,
    ]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()


async def _until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_a_connection_reset_with_half_a_head_is_forgotten_at_once(tmp_path: Path) -> None:
    """Not only when the head's time is over: resets are cheap to send."""
    async with Stratum().running() as good, cache(tmp_path, [good]) as site:
        host, _, port = site.address.rpartition(":")
        for _ in range(5):
            with socket.create_connection((host, int(port))) as client:
                client.send(b"GET / HTTP/1.1\r\n")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert (await site.get(CATALOG)).status == 200  # accepted after them
        await until_async(lambda: _none_open(site), "no connection is left", 2)


async def _none_open(site: Site) -> bool:
    return site.service.listener.connections == 0
