"""MKCOL, DELETE, COPY and MOVE."""

from __future__ import annotations

import os
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


@pytest.mark.root
def test_what_resists_a_removal_is_told_and_the_rest_goes(dav: Dav) -> None:
    """207 with each member that could not be removed (RFC 4918 §9.6.1)."""
    for name in ("t/one", "t/a/b/two", "t/locked/kept", "t/locked/odd %C3%BC"):
        dav("PUT", name.replace(" ", "%20"), b"x")
    (dav.root / "t/locked").chmod(0o555)
    os.chown(dav.root / "t/locked", 0, 0)
    answer = dav("DELETE", "t")
    assert answer.status == 207
    assert sorted(answer.hrefs) == [f"{dav.path}/t/locked/kept", f"{dav.path}/t/locked/odd%20%C3%BC"]
    assert answer.text.count("HTTP/1.1 403 Forbidden") == 2
    assert sorted(p.name for p in dav.root.rglob("*")) == ["kept", "locked", "odd ü", "t"]
    (dav.root / "t/locked").chmod(0o755)
    dav.site.own(dav.root / "t/locked")
    assert dav("DELETE", "t").status == 204


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


def test_move_between_exports_is_a_copy_and_a_removal(dav: Dav) -> None:
    other = f"/pruned/{dav.root.name}"
    there = dav.site.directory / "pruned" / dav.root.name
    dav("PUT", "f", b"one")
    assert dav("MOVE", "f", Destination=dav.site.base + f"{other}/f").status == 201
    assert ((there / "f").read_bytes(), (dav.root / "f").exists()) == (b"one", False)
    assert (
        dav("HEAD", f"{other}/f", Want_Digest="adler32").headers["digest"]
        == f"adler32={zlib.adler32(b'one'):08x}"
    )
    dav("PUT", "f", b"two")
    assert dav("MOVE", "f", Destination=dav.site.base + f"{other}/f", Overwrite="F").status == 412
    writer = dav.with_scope("storage.modify:/")  # it would learn what is in the file
    assert writer("MOVE", "f", Destination=dav.site.base + f"{other}/f").status == 403
    assert dav("MOVE", "f", Destination=dav.site.base + f"{other}/f").status == 204
    assert (there / "f").read_bytes() == b"two"
    dav("PUT", "t/a/g", b"x")
    assert dav("MOVE", "t", Destination=dav.site.base + f"{other}/t").status == 201
    assert ((there / "t/a/g").read_bytes(), (dav.root / "t").exists()) == (b"x", False)
    assert dav("DELETE", other).status == 204


@pytest.mark.root
def test_a_move_between_exports_that_cannot_be_whole_leaves_the_source(dav: Dav) -> None:
    other = f"/pruned/{dav.root.name}"
    dav("PUT", "t/one", b"x")
    dav("PUT", "t/secret", b"y")
    os.chown(dav.root / "t/secret", 0, 0)
    (dav.root / "t/secret").chmod(0o600)
    answer = dav("MOVE", "t", Destination=dav.site.base + f"{other}/t")
    assert (answer.status, answer.hrefs) == (207, [f"{other}/t/secret"])
    assert sorted(p.name for p in (dav.root / "t").iterdir()) == ["one", "secret"]
    assert dav("DELETE", other).status == 204


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
