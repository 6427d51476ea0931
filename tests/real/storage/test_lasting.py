"""Transfers that take longer than their token and its grant live: what was begun is finished, nothing else."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.real.storage.conftest import THIRD_PARTY
from tests.real.storage.test_third_party import Partner, answer_of, last, pull
from tests.support.dav import Dav, read_until
from tests.support.filesystems import distant
from tests.support.storage import EVERYTHING, StorageSite
from tests.support.waiting import until

DATA = bytes(range(256)) * 2000
LIFE_S = 4


@pytest.fixture(scope="module")
def brief(ground: Path, site: StorageSite) -> Iterator[StorageSite]:
    """An endpoint whose access grants live for two seconds."""
    settings = {"third_party": THIRD_PARTY}
    found = StorageSite(
        ground / "brief", ca=site.ca, issuer=site.issuer, settings=settings, identity={"grant_s": 2.0}
    )
    with found, Dav(found) as dav:
        until(lambda: dav("HEAD", "").status == 200, "the account's worker is there", 20)
        yield found


class Fading(Dav):
    """A client whose token ends in a few seconds."""

    def __init__(self, site: StorageSite) -> None:
        super().__init__(site)
        self.ends = int(time.time()) + LIFE_S
        self.token = site.token(EVERYTHING, exp=self.ends)

    def wait_for_the_end(self) -> None:
        """Until the token is refused, and every access grant made with it is over."""
        until(lambda: time.time() > self.ends + 0.2, "the token ended", LIFE_S + 5)
        with Fading(self.site) as other:
            other.token = self.token
            assert other("HEAD", "").status == 401


def test_an_upload_is_finished_after_the_end_of_its_token(brief: StorageSite) -> None:
    with Fading(brief) as dav, dav.raw() as sock, dav.raw() as cut:
        length = str(len(DATA))
        sock.sendall(dav.head_of("PUT", "up", Content_Length=length) + DATA[:1000])
        cut.sendall(dav.head_of("PUT", "cut", Content_Length=length) + DATA[:1000])
        until(lambda: len(brief.temporaries()) == 2, "both uploads began", 5)
        dav.wait_for_the_end()
        cut.close()
        until(lambda: len(brief.temporaries()) == 1, "a cut one leaves nothing, even now", 10)
        sock.sendall(DATA[1000:])
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 201 ")
    assert (brief.root / "up").read_bytes() == DATA
    assert brief.temporaries() == []


def _pass(seconds: float) -> None:
    """Let the token fade."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, "time passes", seconds + 5)


def test_a_pull_is_finished_after_the_end_of_its_token(brief: StorageSite) -> None:
    dav = Fading(brief)

    def slow(sock: ssl.SSLSocket, head: bytes, _: int) -> None:
        sock.sendall(answer_of("200 OK", f"Content-Length: {len(DATA)}"))
        if head.startswith(b"GET"):
            for start in range(0, len(DATA), 100_000):
                sock.sendall(DATA[start : start + 100_000])
                if start < 300_000:
                    _pass(LIFE_S / 3)

    with dav, Partner(brief, slow).running() as partner:
        assert last(pull(dav, "pulled", partner.url)) == "success: Created"
        assert time.time() > dav.ends
    assert (brief.root / "pulled").read_bytes() == DATA


def test_a_download_goes_on_after_the_end_of_its_token(brief: StorageSite) -> None:
    size = 64 << 20
    brief.put_file("big", size=size)
    with Fading(brief) as dav, dav.raw() as sock:
        sock.sendall(dav.head_of("GET", "big", Connection="close"))
        got = len(read_until(sock, b"\r\n\r\n").partition(b"\r\n\r\n")[2])
        dav.wait_for_the_end()
        while block := sock.recv(1 << 20):
            got += len(block)
    assert got == size


@pytest.mark.root
def test_a_copy_of_a_tree_is_finished_after_the_end_of_its_grant(ground: Path, site: StorageSite) -> None:
    """Each file has calls of its own; the file server stops in the midst, for longer than a grant lives."""
    with distant(ground / "slow-source", ground / "slow") as server:
        exports = ({"prefix": "/slow", "root": str(ground / "slow"), "vo": "cms"},)
        slow = StorageSite(
            ground / "slow-site",
            ca=site.ca,
            issuer=site.issuer,
            exports=exports,
            settings={"durable": False},
            identity={"grant_s": 2.0},
        )
        with slow, Dav(slow) as dav, ThreadPoolExecutor(1) as thread:
            until(lambda: dav("HEAD", "").status == 200, "the account's worker is there", 20)
            for number in range(400):
                slow.put_file(f"tree/{number}/file", b"small")
            copying = thread.submit(dav, "COPY", "tree", Destination=slow.base + "/slow/copy")
            made = ground / "slow-source/copy"
            until(lambda: made.is_dir() and len(list(made.iterdir())) > 10, "the copy began", 20, 0.005)
            server.hang()
            _pass(3.0)
            server.resume()
            assert copying.result(60).status == 201
            assert len(list((ground / "slow-source/copy").glob("*/file"))) == 400
