"""File systems that fill up, have a quota or hang: each really mounted."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.dav import Answer, Dav, read_until
from tests.support.filesystems import Distant, distant, with_quota
from tests.support.storage import StorageSite
from tests.support.waiting import until

pytestmark = pytest.mark.root
DATA = bytes(range(256)) * 12000


def test_a_full_disk_is_507_and_leaves_nothing(site: StorageSite, dav: Dav) -> None:
    small = site.directory / "small"
    options = f"size=4m,uid={small.stat().st_uid},gid={small.stat().st_gid},mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(small)], check=True)
    try:
        until(
            lambda: dav("PUT", "/small/probe", b"x").status in (200, 201) and (small / "probe").exists(),
            "seen",
            10,
        )
        full = dav("PUT", "/small/big", b"x" * (6 << 20))
        assert full.status == 507
        assert "space" in full.text
        assert sorted(p.name for p in small.iterdir()) == ["probe"]
        assert dav("PUT", "/small/fits", b"y" * 1000).status == 201
        dav("PUT", "big", b"x" * (6 << 20))
        pulled = dav("COPY", "big", Destination=dav.site.base + "/small/copy")
        assert pulled.status == 507
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_a_used_up_quota_is_507_with_its_own_text(ground: Path, site: StorageSite) -> None:
    """EDQUOT of a btrfs subvolume's limit: by PUT, COPY, MOVE from elsewhere and third-party copy."""
    with with_quota(ground / "quota.img", ground / "quota", "4M") as data:
        exports = ({"prefix": "/limited", "root": str(data), "vo": "cms"},)
        copies = {"partners": ["localhost"], "allow": ["127.0.0.0/8"], "attempts": 1}
        limited = StorageSite(
            ground / "limited",
            ca=site.ca,
            issuer=site.issuer,
            exports=exports,
            settings={"third_party": copies},
        )
        with limited, Dav(limited) as dav:
            assert dav("PUT", "/limited/old", b"old").status == 201
            dav("PUT", "big", b"x" * (6 << 20))
            target = limited.base + "/limited/new"
            answers = [
                dav("PUT", "/limited/new", b"x" * (6 << 20)),
                dav("PUT", "/limited/old", b"x" * (6 << 20)),
                dav("COPY", "big", Destination=target),
                dav("MOVE", "big", Destination=target),
            ]
            assert [(answer.status, "quota used up" in answer.text) for answer in answers] == [
                (507, True)
            ] * 4
            token = f"Bearer {dav.token}"
            pulled = dav("COPY", "/limited/new", Source=dav.url("big"), TransferHeaderAuthorization=token)
            assert pulled.text.strip().splitlines()[-1] == "failure: quota used up"
            assert [path.name for path in data.iterdir()] == ["old"]
            assert (data / "old").read_bytes() == b"old"
            assert (limited.root / "big").stat().st_size == 6 << 20


@pytest.fixture
def far(ground: Path) -> Iterator[tuple[Path, Distant]]:
    """A mount of a file server that can be made to hang."""
    with distant(ground / "far-source", ground / "far") as server:
        yield ground / "far", server


def test_a_hung_file_server_stalls_its_export_only(
    ground: Path, site: StorageSite, far: tuple[Path, Distant]
) -> None:
    root, server = far
    exports = ({"prefix": "/far", "root": str(root), "vo": "cms"},)
    hung = StorageSite(
        ground / "half-hung", ca=site.ca, issuer=site.issuer, exports=exports, settings={"stall_s": 4.0}
    )
    with hung, Dav(hung) as dav, dav.raw() as reading:
        dav("PUT", "near", DATA)
        assert dav("PUT", "/far/f", DATA).status == 201
        assert dav("GET", "/far/f").body == DATA
        hung.put_file("big", size=64 << 20)
        dav("COPY", "big", Destination=hung.base + "/far/big")
        reading.sendall(dav.head_of("GET", "/far/big"))
        assert read_until(reading, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        server.hang()
        try:
            stuck = [threading.Thread(target=_insist, args=(hung, number)) for number in range(24)]
            for thread in stuck:
                thread.start()
            slowest = max(_near(dav, number) for number in range(40))
            until(lambda: "far for " in _not_ready(hung), "readiness tells", 15)
            assert max(slowest, *(_near(dav, number) for number in range(40))) < 2.0
            began = time.monotonic()
            refused = [dav(verb, "/far/f") for verb in ("HEAD", "GET", "DELETE", "PROPFIND")]
            assert min(answer.status for answer in refused) == 503
            assert time.monotonic() - began < 8.0  # at most one of them went to find out
            assert "does not answer" in refused[-1].text
        finally:
            server.resume()
        until(lambda: dav("GET", "/far/f").body == DATA, "the export is back", 20)
        until(lambda: not _not_ready(hung), "and readiness with it", 10)
        for thread in stuck:
            thread.join(30)
        assert not any(thread.is_alive() for thread in stuck)
        until(lambda: not [*root.glob(".edged-upload-*")], "uploads that were cut left nothing", 10)


def _near(dav: Dav, number: int) -> float:
    """Seconds that a read and a write on the other export took."""
    began = time.monotonic()
    assert dav("GET", "near").body == DATA
    assert dav("PUT", f"n{number}", b"x" * 1000).status in (200, 201)
    return time.monotonic() - began


def _insist(site: StorageSite, number: int) -> Answer | None:
    """One of many who use the hung export."""
    verb = ("GET", "PUT", "PROPFIND", "HEAD")[number % 4]
    with suppress(OSError), Dav(site) as dav:
        return dav(verb, f"/far/{'f' if verb != 'PUT' else number}", DATA if verb == "PUT" else None)
    return None


def _not_ready(site: StorageSite) -> str:
    """Why, or nothing."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{site.observe}/readyz", timeout=5).close()
    except urllib.error.HTTPError as error:
        return str(json.load(error)["not_ready"])
    return ""
