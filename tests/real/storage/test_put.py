"""PUT."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import socket
import threading
import zlib
from contextlib import suppress

import pytest

from tests.support.dav import Dav, read_until
from tests.support.storage import StorageSite
from tests.support.waiting import until

DATA = random.Random(5).randbytes(3 << 20)  # the same in each test process: test names hold its digests


def test_new_and_replaced(dav: Dav) -> None:
    new = dav("PUT", "a/b/c", DATA)
    assert (new.status, new.headers["digest"]) == (201, f"adler32={zlib.adler32(DATA):08x}")
    assert new.headers["etag"] == dav("HEAD", "a/b/c").headers["etag"]
    assert (dav.root / "a/b/c").read_bytes() == DATA
    assert dav("PUT", "a/b/c", b"").status == 200  # Rucio takes 200 or 201, no 204
    assert (dav.root / "a/b/c").read_bytes() == b""


def test_chunked(dav: Dav) -> None:
    with dav.raw() as sock:
        sock.sendall(dav.head_of("PUT", "f", Transfer_Encoding="chunked"))
        sock.sendall(b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n")
        assert b" 201 " in read_until(sock, b"\r\n\r\n")
    assert (dav.root / "f").read_bytes() == b"abcdefg"


def test_100_continue_comes_at_once_and_only_after_authorisation(dav: Dav) -> None:
    with dav.raw() as sock:
        sock.sendall(dav.head_of("PUT", "f", Content_Length="3", Expect="100-continue"))
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"abc")
        assert b" 201 " in read_until(sock, b"\r\n\r\n")
    reader = dav.with_scope("storage.read:/")
    with reader.raw() as sock:
        sock.sendall(reader.head_of("PUT", "g", Content_Length="3", Expect="100-continue"))
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Digest", f"adler32={zlib.adler32(DATA):08x}"),
        ("Digest", "md5=" + base64.b64encode(hashlib.md5(DATA).digest()).decode()),
        ("Content-MD5", base64.b64encode(hashlib.md5(DATA).digest()).decode()),
        ("Repr-Digest", f"sha-256=:{base64.b64encode(hashlib.sha256(DATA).digest()).decode()}:"),
    ],
)
def test_announced_digests_are_verified(dav: Dav, header: str, value: str) -> None:
    assert dav("PUT", "f", DATA, **{header: value}).status == 201
    wrong = dav("PUT", "f", DATA[:-1] + b"x", **{header: value})
    assert wrong.status == 400
    assert (dav.root / "f").read_bytes() == DATA


def test_conditions(dav: Dav) -> None:
    assert dav("PUT", "f", b"1", If_None_Match="*").status == 201
    assert dav("PUT", "f", b"2", If_None_Match="*").status == 412
    tag = dav("HEAD", "f").headers["etag"]
    assert dav("PUT", "f", b"3", If_Match=tag).status == 200
    assert dav("PUT", "f", b"4", If_Match=tag).status == 412
    assert (dav.root / "f").read_bytes() == b"3"


def test_create_does_not_overwrite_and_leaves_the_old_file(dav: Dav) -> None:
    """XRootD 5.5.3 with persist deletes the file that it refuses to overwrite."""
    creator = dav.with_scope("storage.create:/")
    assert creator("PUT", "f", b"first").status == 201
    assert creator("PUT", "f", b"second").status == 403
    assert creator("GET", "f").status == 403
    assert creator("HEAD", "f").status == 200
    assert creator("DELETE", "f").status == 403
    assert (dav.root / "f").read_bytes() == b"first"


def test_things_that_are_no_file(dav: Dav) -> None:
    dav("MKCOL", "d")
    assert dav("PUT", "d", b"x").status == 405
    assert dav("PUT", "d/", b"x").status == 405
    dav("PUT", "f", b"x")
    assert dav("PUT", "f/below", b"x").status == 409
    assert dav("PUT", "f", b"x", Content_Range="bytes 0-0/1").status == 400
    assert dav("PUT", "f", b"x", Content_Encoding="gzip").status == 400


def test_a_cut_upload_leaves_nothing_and_harms_nothing(dav: Dav) -> None:
    dav("PUT", "f", b"old")
    for name in ("f", "new"):
        with dav.raw() as sock:
            sock.sendall(dav.head_of("PUT", name, Content_Length=str(10 << 30)) + b"x" * 1024)
            until(lambda: list(dav.root.glob(".edged-upload-*")), "the upload began", 10)
        until(lambda: not list(dav.root.glob(".edged-upload-*")), "the upload is cleaned away", 10)
    assert (dav.root / "f").read_bytes() == b"old"
    assert not (dav.root / "new").exists()


def test_a_half_closed_upload_ends(plain_dav: Dav) -> None:
    with plain_dav.raw() as sock:
        sock.sendall(plain_dav.head_of("PUT", "f", Content_Length="1000") + b"x")
        sock.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            while sock.recv(65536):
                pass
    until(lambda: not list(plain_dav.root.iterdir()), "nothing is left", 10)


def test_a_stalled_upload_is_cut(dav: Dav) -> None:
    """The site's stall_s is 5."""
    with dav.raw() as sock:
        sock.settimeout(25)
        sock.sendall(dav.head_of("PUT", "f", Content_Length="1000") + b"x")
        with suppress(OSError):
            assert b" 201 " not in read_until(sock, b"\r\n\r\n")
    until(lambda: not list(dav.root.iterdir()), "nothing is left", 10)


def test_two_writers_of_one_path(dav: Dav) -> None:
    bodies = [bytes([65 + i]) * (1 << 20) for i in range(4)]
    clients = [dav.with_scope("storage.modify:/") for _ in bodies]
    statuses: list[int] = []

    def write(client: Dav, body: bytes) -> None:
        statuses.append(client("PUT", "f", body).status)
        client.close()

    threads = [threading.Thread(target=write, args=pair) for pair in zip(clients, bodies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(statuses) <= {200, 201}
    assert (dav.root / "f").read_bytes() in bodies


def test_create_races_have_one_winner(dav: Dav) -> None:
    clients = [dav.with_scope("storage.create:/") for _ in range(4)]
    statuses: list[int] = []

    def write(index: int) -> None:
        statuses.append(clients[index]("PUT", "f", bytes([65 + index]) * 500_000).status)
        clients[index].close()

    threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(statuses) == [201, 403, 403, 403]


def test_names_of_every_kind(dav: Dav) -> None:
    for raw, name in {
        "x" * 255: "x" * 255,
        "%C3%A4%20%F0%9F%98%80": "ä 😀",
        "a%0Ab": "a\nb",
        "%3Ca%26b%3E": "<a&b>",
        "..%20": ".. ",
        "a%25b": "a%b",
        "+~!$'()*,;=:@": "+~!$'()*,;=:@",
    }.items():
        assert dav("PUT", raw, b"x").status == 201, raw
        assert (dav.root / name).read_bytes() == b"x"
        assert dav("GET", raw).body == b"x"
    listed = dav("PROPFIND", "", Depth="1")
    assert len(listed.hrefs) == 8
    for href in listed.hrefs[1:]:
        assert dav("DELETE", href).status == 204, href


@pytest.mark.parametrize(
    "raw", ["a%00b", "a%2Fb", "../x", "a/../b", "%2e%2e/x", ".", "%ff", "x" * 256, "y/" * 2050 + "z"]
)
def test_names_refused(dav: Dav, raw: str) -> None:
    assert dav("PUT", raw, b"x").status in (400, 414)
    assert list(dav.root.iterdir()) == []


def test_names_on_disk_that_are_not_utf8_are_listed(dav: Dav) -> None:
    (dav.root / os.fsdecode(b"latin-\xfc")).write_bytes(b"x")
    assert dav("PROPFIND", "", Depth="1").hrefs[1:] == [f"{dav.path}/latin-%FC"]
    assert dav("GET", "latin-%FC").status == 400


def test_x_oc_mtime(dav: Dav) -> None:
    dav("PUT", "f", b"x", **{"X-OC-Mtime": "1000000000"})
    assert (dav.root / "f").stat().st_mtime == 1000000000
    assert dav("HEAD", "f", Want_Digest="adler32").headers["digest"] == "adler32=00790079"


def test_locked_files_need_their_token(dav: Dav) -> None:
    body = (
        b'<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>'
    )
    lock = dav("LOCK", "f", body)
    assert lock.status == 201
    token = lock.headers["lock-token"]
    assert dav("PUT", "f", b"x").status == 423
    assert dav("PUT", "f", b"x", If=f"({token})").status == 200
    stranger = dav.with_scope("storage.modify:/", sub="mallory")
    assert stranger("PUT", "f", b"x", If=f"({token})").status == 423
    assert stranger("UNLOCK", "f", Lock_Token=token).status == 403
    assert dav("UNLOCK", "f", Lock_Token=token).status == 204
    assert dav("PUT", "f", b"y").status == 200


def test_files_belong_to_the_account(dav: Dav, site: StorageSite) -> None:
    dav("PUT", "f", b"x")
    assert (dav.root / "f").owner() == site.account
