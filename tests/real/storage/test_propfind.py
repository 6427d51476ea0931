"""PROPFIND and PROPPATCH."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.dav import D, Dav

PROP = '<propfind xmlns="DAV:"><prop>{}</prop></propfind>'


def test_depths(dav: Dav) -> None:
    dav.site.put_file(f"{dav.root.name}/d/f", b"abc")
    assert dav("PROPFIND", "d", Depth="0").hrefs == [f"{dav.path}/d/"]
    assert dav("PROPFIND", "d", Depth="1").hrefs == [f"{dav.path}/d/", f"{dav.path}/d/f"]
    assert dav("PROPFIND", "d/f", Depth="1").hrefs == [f"{dav.path}/d/f"]
    assert dav("PROPFIND", "d").status == 207
    refused = dav("PROPFIND", "", Depth="infinity")
    assert (refused.status, refused.xml.find(f"{D}propfind-finite-depth") is not None) == (403, True)
    assert dav("PROPFIND", "none", Depth="0").status == 404
    assert dav("PROPFIND", "d", Depth="2").status == 400


def test_live_properties(dav: Dav) -> None:
    dav.site.put_file(f"{dav.root.name}/f.root", b"abc")
    found = dav("PROPFIND", "f.root", Depth="0").properties()
    assert found[f"{D}getcontentlength"] == "3"
    assert found[f"{D}getetag"] == dav("HEAD", "f.root").headers["etag"]
    assert found[f"{D}getlastmodified"] == dav("HEAD", "f.root").headers["last-modified"]
    collection = dav("PROPFIND", "", Depth="0").properties()
    assert int(collection[f"{D}quota-available-bytes"]) > 0
    assert f"{D}getcontentlength" not in collection
    mode = dav("PROPFIND", "", PROP.format('<mode xmlns="LCGDM:"/>').encode(), Depth="0").properties()
    assert mode["{LCGDM:}mode"].startswith("40")


def test_dead_properties_live_with_the_file(dav: Dav) -> None:
    dav("PUT", "f", b"x")
    set_ = '<propertyupdate xmlns="DAV:"><set><prop><colour xmlns="urn:c">blau</colour></prop></set></propertyupdate>'
    assert dav("PROPPATCH", "f", set_.encode()).status == 207
    dav("MOVE", "f", Destination=dav.url("g"))
    dav("COPY", "g", Destination=dav.url("h"))
    for name in ("g", "h"):
        asked = dav("PROPFIND", name, PROP.format('<colour xmlns="urn:c"/>').encode(), Depth="0")
        assert asked.properties() == {"{urn:c}colour": "blau"}
    listed = dav("PROPFIND", "", PROP.format('<colour xmlns="urn:c"/>').encode(), Depth="1")
    assert listed.properties(1) == {"{urn:c}colour": "blau"}


def test_protected_properties_change_nothing_else(dav: Dav) -> None:
    dav("PUT", "f", b"x")
    body = (
        b'<propertyupdate xmlns="DAV:"><set><prop><a xmlns="u">1</a><getetag>no</getetag></prop></set>'
        b"</propertyupdate>"
    )
    answer = dav("PROPPATCH", "f", body)
    assert "403 Forbidden" in answer.text
    assert "424 Failed Dependency" in answer.text
    assert dav("PROPFIND", "f", PROP.format('<a xmlns="u"/>').encode(), Depth="0").properties() == {}
    assert dav.with_scope("storage.read:/")("PROPPATCH", "f", body).status == 403


def test_too_many_properties_are_refused_with_507(dav: Dav) -> None:
    dav("PUT", "f", b"x")
    body = f'<propertyupdate xmlns="DAV:"><set><prop><a xmlns="u">{"x" * 70000}</a></prop></set></propertyupdate>'
    assert dav("PROPPATCH", "f", body.encode()).status == 507


BOMB = (
    '<!DOCTYPE lolz [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";") * 10}">' for i in range(9))
    + ']><propfind xmlns="DAV:"><allprop/>&j;</propfind>'
)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (BOMB.encode(), 400),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><propfind xmlns="DAV:"><allprop/></propfind>', 400),
        (b"<propfind", 400),
        (b'<propfind xmlns="DAV:">' + b"<a>" * 20000, 400),
        (b" " * (10 << 20), 413),
    ],
)
def test_hostile_bodies(dav: Dav, body: bytes, status: int) -> None:
    assert dav("PROPFIND", "", body, Depth="0").status == status
    if len(body) < 1 << 20:
        assert dav("PROPPATCH", "", body).status == status
        assert dav("LOCK", "f", body).status == status


def test_100_000_entries(dav: Dav) -> None:
    many = dav.root / "many"
    many.mkdir()
    dav.site.own(many)
    directory = os.open(many, os.O_RDONLY)
    for index in range(100_000):
        os.close(os.open(f"file-{index:06d}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=directory))
    os.close(directory)
    before = resident(dav.site.pid)
    for _ in range(2):
        answer = dav("PROPFIND", "many", Depth="1")
        assert answer.status == 207
        assert len(re.findall(rb"<D:href>", answer.body)) == 100_001
    grown = resident(dav.site.pid) - before
    assert grown < 300 << 20, f"the front grew by {grown >> 20} MiB"
    assert dav("GET", "many/").body.count(b"<tr>") > 100_000
    assert dav("DELETE", "many").status == 204


def resident(pid: int) -> int:
    """Bytes of memory a process holds now."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
