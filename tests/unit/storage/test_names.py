"""Paths, exports and own names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config.storage import Export
from edged.errors import BadRequest, NotFound
from services.storage.namespace import Above, Namespace, OwnNames, Target, escape, path_of, segments

CMS = Export(prefix="/cms", root=Path("/srv/cms"), vo="cms")
DEEP = Export(prefix="/cms/scratch", root=Path("/srv/scratch"), vo="cms")
ATLAS = Export(prefix="/grid/atlas", root=Path("/srv/atlas"), vo="atlas")
SPACE = Namespace([CMS, DEEP, ATLAS])


def target(raw: str) -> Target:
    found = SPACE.locate(raw)
    assert isinstance(found, Target)
    return found


@pytest.mark.parametrize(
    ("raw", "export", "path"),
    [
        ("/cms", CMS, ""),
        ("/cms/", CMS, ""),
        ("/cms/a/b", CMS, "a/b"),
        ("//cms//a///b", CMS, "a/b"),
        ("/cms/scratch/x", DEEP, "x"),
        ("/cms/scratchy", CMS, "scratchy"),
        ("/cms/%61%20b", CMS, "a b"),
        ("/cms/%C3%BC", CMS, "ü"),
        ("/cms/ü", CMS, "ü"),
        ("/cms/...", CMS, "..."),
        ("/grid/atlas/x", ATLAS, "x"),
    ],
)
def test_located(raw: str, export: Export, path: str) -> None:
    found = target(raw)
    assert (found.export, found.path) == (export, path)


@pytest.mark.parametrize(
    "raw",
    [
        "/cms/../atlas",
        "/cms/.",
        "/cms/%2e%2e/x",
        "/cms/.%2E",
        "/cms/a%2fb",
        "/cms/a%00b",
        "/cms/%ff",
        "/cms/%c3",
        "/cms/" + "x" * 256,
        "/cms/" + "ü" * 128,
        "/cms/" + "y/" * 2100,
        "/cms/" + chr(0xDCFF),
    ],
)
def test_refused(raw: str) -> None:
    with pytest.raises(BadRequest):
        SPACE.locate(raw)


def test_names_of_255_bytes_are_names() -> None:
    assert target("/cms/" + "x" * 255).path == "x" * 255


@pytest.mark.parametrize("raw", ["/nowhere", "/cmsx/a", "/grid/cms", "/grid/atlasx"])
def test_nothing_there(raw: str) -> None:
    with pytest.raises(NotFound):
        SPACE.locate(raw)


def test_above_the_exports() -> None:
    for raw, exports in (("/", (CMS, DEEP, ATLAS)), ("/grid", (ATLAS,))):
        found = SPACE.locate(raw)
        assert isinstance(found, Above)
        assert found.exports == exports


def test_hrefs_keep_the_spelling_of_the_request() -> None:
    assert target("/cms/a%20b").href == "/cms/a%20b"
    assert target("/cms/%61/").child("x y").href == "/cms/%61/x%20y"
    assert target("/cms/%61").key == target("/cms/a/").key == "/cms/a"


@given(st.lists(st.text(min_size=1, max_size=40).filter(lambda n: n not in (".", "..")), max_size=6))
def test_every_name_survives_the_way_out_and_back(names: list[str]) -> None:
    names = [n.replace("/", "_").replace("\0", "_") for n in names]
    names = [n for n in names if n not in (".", "..") and n.isprintable() and "\udfff" not in n]
    names = [n for n in names if not any("\ud800" <= c <= "\udfff" for c in n)]
    raw = "/" + "/".join(map(escape, names))
    assert raw.isascii()
    assert segments(raw) == names


@given(st.text(max_size=200))
def test_whatever_comes_in_no_segment_gets_out(text: str) -> None:
    try:
        names = segments(path_of("/" + text))
    except BadRequest:
        return
    assert all(n not in ("", ".", "..") and "/" not in n and "\0" not in n for n in names)


@given(st.binary(max_size=100))
def test_escapes_of_any_bytes(data: bytes) -> None:
    try:
        names = segments("/" + quote(data, safe="/"))
    except BadRequest:
        return
    assert "/".join(names).encode() == b"/".join(p for p in data.split(b"/") if p)


def test_own_names() -> None:
    own = OwnNames(["dav.example.org", "Alias.example.org."], [8443])
    assert own.is_own("/x")
    assert own.is_own("https://DAV.example.org:8443/x")
    assert own.is_own("davs://alias.example.org:8443/x")
    assert not own.is_own("https://dav.example.org/x")
    assert not own.is_own("https://dav.example.org.evil.com:8443/x")
    assert not own.is_own("https://dav.example.org@evil.com:8443/x")
    for bad in ("ftp://dav.example.org:8443/", "https://[::1/", "https://h:99999/", "nonsense"):
        with pytest.raises(BadRequest):
            own.is_own(bad)
