"""XML in and out."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.accounts.api import Entry, Kind, Space
from edged.errors import BadRequest, NoSpace
from services.storage import multistatus
from services.storage.davxml import Change, Name, Propfind, parse_lockinfo, parse_propfind, parse_proppatch
from services.storage.namespace import escape
from services.storage.properties import (
    DEAD,
    Resource,
    changed,
    dead_of,
    http_date,
    iso_date,
    media_type,
    packed,
)

D = 'xmlns="DAV:"'


def test_propfind_bodies() -> None:
    assert parse_propfind(b"") == Propfind("allprop")
    assert parse_propfind(f"<propfind {D}><allprop/></propfind>".encode()) == Propfind("allprop")
    assert parse_propfind(f"<propfind {D}><propname/></propfind>".encode()).kind == "propname"
    body = f'<propfind {D}><prop><getetag/><x:y xmlns:x="urn:x"/></prop></propfind>'.encode()
    assert parse_propfind(body).names == (Name("DAV:", "getetag"), Name("urn:x", "y"))
    included = f"<propfind {D}><allprop/><include><acl/></include></propfind>".encode()
    assert parse_propfind(included) == Propfind("allprop", (Name("DAV:", "acl"),))


BOMB = (
    b'<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><propfind xmlns="DAV:"><allprop/>&b;</propfind>'
)


@pytest.mark.parametrize(
    "body",
    [
        b"<",
        b"not xml",
        b"<propfind/>",
        b'<propfind xmlns="DAV:"/>',
        b'<propfind xmlns="DAV:"><allprop/><propname/></propfind>',
        b'<propertyupdate xmlns="DAV:"/>',
        b'<propfind xmlns="DAV:"><prop><bar:foo xmlns:bar=""/></prop></propfind>',
        BOMB,
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><propfind xmlns="DAV:"><allprop/></propfind>',
        b'<propfind xmlns="DAV:">' + b"<a>" * 5000 + b"</a>" * 5000 + b"</propfind>",
        b'<propfind xmlns="DAV:"><prop>'
        + b"".join(b"<p%d/>" % i for i in range(600))
        + b"</prop></propfind>",
        b'<?xml version="1.0" encoding="nonsense"?><propfind xmlns="DAV:"><allprop/></propfind>',
        b"\xff\xfe\x00",
    ],
)
def test_bodies_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_propfind(body)


@given(st.binary(max_size=300))
def test_no_body_breaks_the_parser(body: bytes) -> None:
    for parse in (parse_propfind, parse_proppatch, parse_lockinfo):
        try:
            parse(body)
        except BadRequest:
            continue


def test_proppatch() -> None:
    body = (
        f'<propertyupdate {D} xml:lang="de"><set><prop><c xmlns="urn:c">blau</c></prop></set>'
        "<remove><prop><getetag/></prop></remove></propertyupdate>"
    ).encode()
    first, second = parse_proppatch(body)
    assert first.name == Name("urn:c", "c")
    assert first.xml is not None
    element = ElementTree.fromstring(first.xml)
    assert (element.text, element.get("{http://www.w3.org/XML/1998/namespace}lang")) == ("blau", "de")
    assert second == Change(Name("DAV:", "getetag"), None)


def test_lockinfo() -> None:
    body = (
        f"<lockinfo {D}><lockscope><exclusive/></lockscope><locktype><write/></locktype>"
        "<owner><href>me &amp; you</href></owner></lockinfo>"
    ).encode()
    asked = parse_lockinfo(body)
    assert asked.exclusive
    assert "me &amp; you" in asked.owner
    for bad in (b"", f"<lockinfo {D}/>".encode(), body.replace(b"exclusive", b"both")):
        with pytest.raises(BadRequest):
            parse_lockinfo(bad)


def entry(name: str, kind: Kind = Kind.FILE) -> Entry:
    return Entry(name, kind, 42, 10**18, 0, 7, 1, 0o640, 1, 1, 1)


def rendered(request: Propfind, *resources: Resource) -> ElementTree.Element:
    pieces = multistatus.Pieces(request)
    return ElementTree.fromstring(b"".join(pieces.of(resources)) + pieces.end())


@given(st.lists(st.text(min_size=1, max_size=30), max_size=20))
def test_any_name_makes_good_xml(names: list[str]) -> None:
    names = [n.replace("/", "_") for n in names]
    resources = [
        Resource("/cms/" + (escape(n) if "\ud800" not in n else "x"), n, False, entry(n))
        for n in names
        if not any("\ud800" <= c <= "\udfff" for c in n)
    ]
    root = rendered(Propfind("allprop"), *resources)
    hrefs = [node.findtext("{DAV:}href") for node in root]
    assert hrefs == [r.href for r in resources]


def test_quota_is_where_rucio_looks() -> None:
    space = Space(100, 40, 60, 10, 1)
    root = rendered(Propfind("allprop"), Resource("/cms/", "cms", True, entry("cms", Kind.DIRECTORY), space))
    prop = root[0][1][0]
    assert prop.findtext("{DAV:}quota-used-bytes") == "40"
    assert prop.findtext("{DAV:}quota-available-bytes") == "60"


def test_found_and_missing_are_apart() -> None:
    asked = Propfind("prop", (Name("DAV:", "getcontentlength"), Name("", "none"), Name("urn:x", "y")))
    root = rendered(asked, Resource("/f", "f", False, entry("f")))
    statuses = [node.findtext("{DAV:}status") for node in root[0].findall("{DAV:}propstat")]
    assert statuses == ["HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found"]


def test_both_ways_of_allprop_agree() -> None:
    """The fast path of listings says what the general one says."""
    for kind in (Kind.FILE, Kind.DIRECTORY):
        plain = Resource("/f", "f", kind is Kind.DIRECTORY, entry("f", kind))
        general = Resource(
            "/f", "f", kind is Kind.DIRECTORY, entry("f", kind), dead={Name("u", "v"): "<v xmlns='u'/>"}
        )
        one = {p.tag: "".join(p.itertext()) for p in rendered(Propfind("allprop"), plain)[0][1][0]}
        two = {p.tag: "".join(p.itertext()) for p in rendered(Propfind("allprop"), general)[0][1][0]}
        two.pop("{u}v")
        assert one == two


def test_long_documents_come_in_pieces() -> None:
    pieces = multistatus.Pieces(Propfind("allprop"))
    sizes = [len(p) for p in pieces.of(Resource(f"/f{i}", f"f{i}", False, entry("f")) for i in range(2000))]
    assert len(sizes) > 5
    assert max(sizes) < 2 * multistatus.PIECE


def test_dead_properties_are_kept_and_limited() -> None:
    name = Name("urn:x", "colour")
    after = changed({}, [Change(name, "<c/>"), Change(Name("", "gone"), None)])
    assert dead_of({DEAD: packed(after)}) == {name: "<c/>"}
    assert changed(after, [Change(name, None)]) == {}
    assert dead_of({DEAD: b"damaged"}) == {}
    with pytest.raises(NoSpace):
        packed({name: "x" * 100_000})


def test_dates_and_types() -> None:
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert iso_date(784111777) == "1994-11-06T08:49:37Z"
    assert media_type("x.root") == "application/octet-stream"
    assert media_type("x.HTML") == media_type("x.svg") == "text/plain"  # nobody's data becomes our page
