"""MKCOL, DELETE, COPY and MOVE."""

from __future__ import annotations

import zlib

import pytest

from tests.support.dav import Dav


def test_mkcol(dav: Dav) -> None:
    assert dav("MKCOL", "d").status == 201
    again = dav("MKCOL", "d")
    assert (again.status, "allow" in again.headers) == (405, True)
    assert dav("MKCOL", "x/y/z").status == 201  # Rucio reads 409 as "exists"
    assert dav("MKCOL", "e", b"<x/>").status == 415
    assert dav.with_scope("storage.read:/")("MKCOL", "n").status == 403
    assert dav("MKCOL", "/strict/a/b").status == 409


def test_create_scope_makes_its_leading_directories(dav: Dav) -> None:
    creator = dav.with_scope(f"storage.create:/{dav.root.name}/a/b")
    assert creator("MKCOL", "a").status == 201
    assert creator("MKCOL", "a/other").status == 403
    assert creator("PUT", "a/b/c/f", b"x").status == 201


def test_delete(dav: Dav) -> None:
    dav("PUT", "d/e/f", b"x")
    assert dav("DELETE", "d/e/f").status == 204
    assert dav("DELETE", "d/e/f").status == 404
    assert dav("DELETE", "d").status == 204
    assert list(dav.root.iterdir()) == []
    assert dav("DELETE", "/cms").status == 403
    assert dav.site.root.is_dir()
    dav("PUT", "f", b"x")
    assert dav("DELETE", "f", If_Match='"other"').status == 412
    assert dav.with_scope("storage.read:/ storage.create:/")("DELETE", "f").status == 403


def test_emptied_directories_are_pruned_where_the_export_says_so(dav: Dav) -> None:
    name = f"/pruned/{dav.root.name}"
    dav("PUT", f"{name}/aa/bb/one", b"x")
    dav("PUT", f"{name}/aa/cc/two", b"x")
    assert dav("DELETE", f"{name}/aa/bb/one").status == 204
    assert dav("HEAD", f"{name}/aa/bb").status == 404
    assert dav("HEAD", f"{name}/aa").status == 200
    assert dav("DELETE", f"{name}/aa/cc/two").status == 204
    assert dav("HEAD", name).status == 404


def test_move(dav: Dav) -> None:
    dav("PUT", "a", b"one")
    moved = dav("MOVE", "a", Destination=dav.url("deep/er/b"))
    assert moved.status == 201  # Rucio takes nothing else
    dav("PUT", "a", b"two")
    assert dav("MOVE", "a", Destination=dav.url("deep/er/b"), Overwrite="F").status == 412
    assert dav("MOVE", "a", Destination=dav.full("deep/er/b")).status == 204
    assert dav("GET", "deep/er/b").body == b"two"
    assert dav("MOVE", "a", Destination=dav.url("c")).status == 404
    assert (
        dav("HEAD", "deep/er/b", Want_Digest="adler32").headers["digest"]
        == f"adler32={zlib.adler32(b'two'):08x}"
    )


def test_move_trees(dav: Dav) -> None:
    dav("PUT", "t/a/f", b"x")
    dav("PUT", "u/old", b"y")
    assert dav("MOVE", "t", Destination=dav.url("t/inside")).status == 409
    assert dav("MOVE", "t", Destination=dav.url("u"), Overwrite="F").status == 412
    assert dav("MOVE", "t", Destination=dav.url("u")).status == 204
    assert dav("GET", "u/a/f").body == b"x"
    assert dav("HEAD", "u/old").status == 404


@pytest.mark.parametrize(
    ("destination", "statuses"),
    [
        ("https://elsewhere.example/cms/x", {502, 403}),
        ("ftp://localhost/x", {400}),
        ("", {400}),
        ("/cms/../etc/x", {400}),
        ("/nowhere/x", {404}),
        ("/cms", {403}),
        ("/atlas/x", {403}),
    ],
)
def test_destinations_refused(dav: Dav, destination: str, statuses: set[int]) -> None:
    """mod_dav does a MOVE to another host locally."""
    dav("PUT", "f", b"x")
    headers = {"Destination": destination} if destination else {}
    assert dav("MOVE", "f", **headers).status in statuses
    assert dav("GET", "f").body == b"x"


def test_rename_within_a_create_scope(dav: Dav) -> None:
    creator = dav.with_scope(f"storage.create:/{dav.root.name}")
    creator("PUT", "f.upload", b"x")
    assert creator("MOVE", "f.upload", Destination=dav.url("f")).status == 201
    creator("PUT", "g", b"y")
    assert creator("MOVE", "g", Destination=dav.url("f")).status == 403
    assert (dav.root / "f").read_bytes() == b"x"


def test_copy(dav: Dav) -> None:
    data = bytes(range(256)) * 10000
    dav("PUT", "a", data)
    assert dav("COPY", "a", Destination=dav.url("new/b")).status == 201
    assert dav("COPY", "a", Destination=dav.url("new/b")).status == 204
    assert dav("COPY", "a", Destination=dav.url("new/b"), Overwrite="F").status == 412
    assert dav("COPY", "a", Destination=dav.url("a")).status == 403
    assert dav("GET", "new/b").body == data
    answer = dav("HEAD", "new/b", Want_Digest="adler32")
    assert answer.headers["digest"] == f"adler32={zlib.adler32(data):08x}"


def test_copy_trees(dav: Dav) -> None:
    for name in ("t/one", "t/sub/two", "t/sub/deep/three"):
        dav("PUT", name, name.encode())
    assert dav("COPY", "t", Destination=dav.url("u")).status == 201
    assert dav("GET", "u/sub/deep/three").body == b"t/sub/deep/three"
    assert dav("COPY", "t", Destination=dav.url("v"), Depth="0").status == 201
    assert dav("PROPFIND", "v", Depth="1").hrefs == [f"{dav.path}/v/"]
    (dav.root / "t/sub/secret").write_bytes(b"x")
    (dav.root / "t/sub/secret").chmod(0)
    partly = dav("COPY", "t", Destination=dav.url("w"))
    if partly.status == 207:  # self mode as root reads everything
        assert partly.hrefs == [f"{dav.path}/w/sub/secret"]
    assert dav("GET", "w/one").body == b"t/one"


def test_odd_methods(dav: Dav) -> None:
    assert dav("OPTIONS", "", Authorization="").headers["dav"] == "1, 2"
    macaroon = dav("POST", "", b'{"caveats": []}', Content_Type="application/macaroon-request")
    assert (macaroon.status, "allow" in macaroon.headers) == (405, True)
    for method in ("TRACE", "PATCH", "REPORT", "SEARCH", "BREW"):
        assert dav(method, "").status in (400, 405, 501)
