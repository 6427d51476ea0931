"""Third-party copies with the real XrdHttp of another site, each way and each side active; and their limits."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from services.storage.thirdparty.turns import Places
from tests.real.storage.conftest import THIRD_PARTY, tool
from tests.real.storage.test_third_party import Partner, answer_of, last, pull
from tests.support.dav import Dav
from tests.support.storage import StorageSite
from tests.support.waiting import until
from tests.support.xrdhttp import XrdHttp, xrdhttp

DATA = bytes(range(256)) * 20000
ADLER = f"adler32={zlib.adler32(DATA):08x}"


@pytest.fixture(scope="module")
def partner(ground: Path, site: StorageSite) -> Iterator[XrdHttp]:
    tool("xrootd")
    with xrdhttp(ground / "xrdhttp", site) as running:
        yield running


def ask(site: StorageSite, method: str, url: str, *headers: str) -> str:
    """What the other server answers to curl."""
    options = [part for header in headers for part in ("-H", header)]
    argv = ["curl", "-sS", "--cacert", str(site.ca.file), "-X", method, *options, url]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.root
def test_we_pull_from_xrdhttp(dav: Dav, partner: XrdHttp) -> None:
    (partner.root / "out").write_bytes(DATA)
    answer = pull(dav, "pulled", f"{partner.url}/out", RequireChecksumVerification="true")
    assert last(answer) == "success: Created"
    assert (dav.root / "pulled").read_bytes() == DATA
    assert dav("HEAD", "pulled", Want_Digest="adler32").headers["digest"] == ADLER
    missing = pull(dav, "none", f"{partner.url}/not-there")
    assert last(missing).startswith("failure: rejected ")


@pytest.mark.root
def test_we_push_to_xrdhttp(dav: Dav, partner: XrdHttp) -> None:
    dav("PUT", "f", DATA)
    answer = dav("COPY", "f", Destination=f"{partner.url}/pushed", RequireChecksumVerification="true")
    assert last(answer) == "success: Created"
    assert (partner.root / "pushed").read_bytes() == DATA


@pytest.mark.root
def test_xrdhttp_pulls_from_us(dav: Dav, partner: XrdHttp) -> None:
    dav("PUT", "f", DATA)
    token = f"TransferHeaderAuthorization: Bearer {dav.token}"
    text = ask(dav.site, "COPY", f"{partner.url}/fetched", f"Source: {dav.url('f')}", token)
    assert "success: Created" in text
    assert (partner.root / "fetched").read_bytes() == DATA


@pytest.mark.root
def test_xrdhttp_pushes_to_us(dav: Dav, partner: XrdHttp) -> None:
    (partner.root / "given").write_bytes(DATA)
    token = f"TransferHeaderAuthorization: Bearer {dav.token}"
    text = ask(dav.site, "COPY", f"{partner.url}/given", f"Destination: {dav.url('in/f')}", token)
    assert "success: Created" in text
    assert (dav.root / "in/f").read_bytes() == DATA
    assert dav("HEAD", "in/f", Want_Digest="adler32").headers["digest"] == ADLER


def test_a_vos_copies_are_limited_across_all_processes(ground: Path, site: StorageSite) -> None:
    """Two at once, of eight asked of three processes; the next begins when one ends."""
    settings = {"workers": 3, "third_party": {**THIRD_PARTY, "per_vo": 2, "waiting": 6, "stall_s": 30.0}}
    many = StorageSite(ground / "limits", ca=site.ca, issuer=site.issuer, settings=settings)
    release = threading.Event()
    active: set[int] = set()
    most = 0

    def held(sock: ssl.SSLSocket, head: bytes, number: int) -> None:
        nonlocal most
        sock.sendall(answer_of("200 OK", f"Content-Length: {len(DATA)}"))
        if head.startswith(b"GET"):
            active.add(number)
            most = max(most, len(active))
            sock.sendall(DATA[:1000])
            release.wait(30)
            active.discard(number)
            with suppress(OSError):
                sock.sendall(DATA[1000:])

    with many, Partner(site, held).running() as source, ThreadPoolExecutor(8) as threads:
        clients = [Dav(many) for _ in range(8)]
        asked = [threads.submit(pull, dav, f"f{n}", source.url) for n, dav in enumerate(clients)]
        until(lambda: len(active) == 2, "two began", 20)
        until(lambda: 'edged_storage_copies_waiting{vo="cms"} 6.0' in many.metrics(), "six wait", 20)
        with Dav(many) as ninth:
            assert (
                last(pull(ninth, "f9", source.url))
                == "failure: 503 too many copies are waiting here, try later"
            )
        release.set()
        assert [last(copy.result(60)) for copy in asked] == ["success: Created"] * 8
        for client in clients:
            client.close()
    assert most == 2


HOLDER = """
import sys
from pathlib import Path
from services.storage.thirdparty.turns import Places
places = Places(Path(sys.argv[1]), 2)
print(places.take(), places.take(), places.take(), flush=True)
sys.stdin.read()
"""


def test_places_of_a_killed_process_are_free(tmp_path: Path) -> None:
    file = tmp_path / "vo-cms"
    ours = Places(file, 2)
    argv = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "0 1 None\n"
        assert ours.take() is None
        holder.kill()
    assert [ours.take(), ours.take(), ours.take()] == [0, 1, None]
    ours.give(0)
    assert ours.take() == 0
    ours.close()
