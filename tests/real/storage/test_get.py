"""GET and HEAD."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from pathlib import Path

import pytest

from edged.accounts.rules import TEMPORARY_PREFIX
from services.storage import records
from tests.support.dav import Dav, read_until

DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(params=["dav", "plain_dav"])
def either(request: pytest.FixtureRequest) -> Dav:
    """Over TLS, and over plain http where sendfile carries the bytes."""
    found: Dav = request.getfixturevalue(request.param)
    return found


def test_whole_files_of_every_size(either: Dav) -> None:
    for size in (0, 1, 65535, 65536, 65537, 1 << 20):
        either.site.put_file(f"{either.root.name}/f{size}", DATA[:size])
        answer = either("GET", f"f{size}")
        assert (answer.status, answer.body) == (200, DATA[:size])
        head = either("HEAD", f"f{size}")
        assert (head.status, head.headers["content-length"], head.body) == (200, str(size), b"")


def test_ranges(either: Dav) -> None:
    either.site.put_file(f"{either.root.name}/f", DATA)
    answer = either("GET", "f", Range="bytes=100-299")
    assert (answer.status, answer.body) == (206, DATA[100:300])
    assert answer.headers["content-range"] == f"bytes 100-299/{len(DATA)}"
    assert either("GET", "f", Range="bytes=-7").body == DATA[-7:]
    assert either("GET", "f", Range="bytes=70000-").body == DATA[70000:]
    past = either("GET", "f", Range=f"bytes={len(DATA)}-")
    assert (past.status, past.headers["content-range"]) == (416, f"bytes */{len(DATA)}")
    assert either("GET", "f", Range="bytes=9-1").status == 200


def test_vector_read(either: Dav) -> None:
    either.site.put_file(f"{either.root.name}/f", DATA)
    wanted = [(0, 10), (5000, 90000), (len(DATA) - 5, len(DATA))]
    header = "bytes=" + ",".join(f"{a}-{b - 1}" for a, b in wanted)
    answer = either("GET", "f", Range=header)
    assert answer.status == 206
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    parts = [part.partition(b"\r\n\r\n")[2][:-2] for part in answer.body.split(b"--" + boundary)[1:-1]]
    assert parts == [DATA[a:b] for a, b in wanted]


def test_conditions(dav: Dav) -> None:
    dav("PUT", "f", b"one")
    tag = dav("HEAD", "f").headers["etag"]
    same = dav("GET", "f", If_None_Match=tag)
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
    assert dav("GET", "f", If_Match='"other"').status == 412
    dav("PUT", "f", b"two")
    assert dav("GET", "f", If_None_Match=tag).status == 200
    assert dav("GET", "f", Range="bytes=0-0", If_Range=tag).status == 200
    assert dav("GET", "f", Range="bytes=0-0", If_Range=dav("HEAD", "f").headers["etag"]).status == 206


def test_digests_are_kept_with_the_upload_and_shared_with_xrootd(dav: Dav) -> None:
    dav("PUT", "f", DATA)
    adler = f"{zlib.adler32(DATA):08x}"
    assert dav("HEAD", "f", Want_Digest="ADLER32").headers["digest"] == f"adler32={adler}"
    kept = os.getxattr(dav.root / "f", "user.XrdCks.adler32")
    found = records.unpack_shared(kept)
    assert found is not None
    assert (found[1].hex(), found[2]) == (adler, int((dav.root / "f").stat().st_mtime))
    assert "digest" not in dav("HEAD", "f").headers


def test_digests_nobody_kept_are_computed_and_then_kept(dav: Dav) -> None:
    file = dav.site.put_file(f"{dav.root.name}/f", DATA)
    md5 = base64.b64encode(hashlib.md5(DATA).digest()).decode()
    assert dav("HEAD", "f", Want_Digest="md5").headers["digest"] == f"md5={md5}"
    sha = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    assert dav("GET", "f", Want_Repr_Digest="sha-256=1").headers["repr-digest"] == f"sha-256=:{sha}:"
    assert "user.edged.digests" in os.listxattr(file)


def test_a_stale_digest_is_never_served(dav: Dav) -> None:
    dav("PUT", "f", b"first")
    file = dav.root / "f"
    facts = file.stat()
    file.write_bytes(b"other")  # behind our back, within the same second, and with the old time put back
    os.utime(file, ns=(facts.st_mtime_ns, facts.st_mtime_ns + 1))
    expected = f"adler32={zlib.adler32(b'other'):08x}"
    assert dav("HEAD", "f", Want_Digest="adler32").headers["digest"] == expected


def test_who_may_not_read_gets_no_computed_digest(dav: Dav) -> None:
    dav.site.put_file(f"{dav.root.name}/f", DATA)
    writer = dav.with_scope("storage.modify:/")
    answer = writer("HEAD", "f", Want_Digest="adler32")
    assert (answer.status, answer.headers.get("digest")) == (200, None)
    assert writer("GET", "f").status == 403


def test_index_for_people(dav: Dav) -> None:
    dav.site.put_file(f"{dav.root.name}/d/<b>&.html", b"<script>alert(1)</script>")
    page = dav("GET", "d/")
    assert page.headers["content-type"].startswith("text/html")
    assert "sandbox" in page.headers["content-security-policy"]
    assert "&lt;b&gt;&amp;.html" in page.text
    assert "<b>" not in page.text
    file = dav("GET", "d/%3Cb%3E&.html")
    assert (file.status, file.headers["content-type"]) == (200, "text/plain")  # never run by a browser


def test_temporaries_do_not_exist_for_anyone(dav: Dav) -> None:
    file = dav.site.put_file(f"{dav.root.name}/{TEMPORARY_PREFIX}x", b"half")
    assert dav("GET", f"{TEMPORARY_PREFIX}x").status == 404
    assert dav("PROPFIND", "", Depth="1").hrefs == [f"{dav.path}/"]
    file.unlink()


def test_sparse_file_over_5_gib(plain_dav: Dav) -> None:
    size = (5 << 30) + 12345
    file = plain_dav.site.put_file(f"{plain_dav.root.name}/big", size=size)
    with file.open("r+b") as stream:
        stream.seek(size - 4)
        stream.write(b"tail")
    assert plain_dav("HEAD", "big").headers["content-length"] == str(size)
    assert plain_dav("GET", "big", Range="bytes=-4").body == b"tail"
    assert plain_dav("GET", "big", Range=f"bytes={5 << 30}-").body[-4:] == b"tail"
    assert plain_dav("PROPFIND", "big", Depth="0").properties()["{DAV:}getcontentlength"] == str(size)


def test_a_file_that_shrinks_while_read_is_broken_off_not_padded(dav: Dav) -> None:
    file = dav.site.put_file(f"{dav.root.name}/f", size=64 << 20)
    with dav.raw() as sock:
        sock.sendall(dav.head_of("GET", "f"))
        head = read_until(sock, b"\r\n\r\n")
        assert b" 200 " in head
        os.truncate(file, 1 << 20)
        received = len(head)
        try:
            while block := sock.recv(1 << 20):
                received += len(block)
        except OSError:
            pass
    assert received < 64 << 20


def test_a_file_changed_while_read_is_broken_off(plain_dav: Dav) -> None:
    file = plain_dav.site.put_file(f"{plain_dav.root.name}/f", size=64 << 20)
    with plain_dav.raw() as sock:
        sock.sendall(plain_dav.head_of("GET", "f"))
        received = len(read_until(sock, b"\r\n\r\n"))
        with file.open("r+b") as stream:
            stream.write(b"changed")
        try:
            while block := sock.recv(1 << 20):
                received += len(block)
        except OSError:
            pass
    assert received < 64 << 20


def test_symlinks_out_and_special_files(dav: Dav, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for name, to in {
        "out": tmp_path / "secret",
        "abs": Path("/etc/passwd"),
        "up": Path("../../../../etc/passwd"),
    }.items():
        (dav.root / name).symlink_to(to)
    (dav.root / "dirout").symlink_to("/etc")
    os.mkfifo(dav.root / "fifo")
    dav.site.own(dav.root / "fifo")
    for name in ("out", "abs", "up", "dirout/passwd", "fifo"):
        answer = dav("GET", name)
        assert answer.status in (403, 404, 400, 409), name
        assert b"root:" not in answer.body
    (dav.root / "target").write_bytes(b"inside")
    dav.site.own(dav.root / "target")
    (dav.root / "in").symlink_to("target")
    assert dav("GET", "in").body == b"inside"
