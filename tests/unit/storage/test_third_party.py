"""Addresses, partners, headers and markers of third-party copies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config.storage import INTERNAL_NETWORKS
from edged.errors import BadRequest, Denied
from services.storage.thirdparty.addresses import AddressPolicy
from services.storage.thirdparty.copies import marker
from services.storage.thirdparty.order import Progress
from services.storage.thirdparty.pull import source_of
from services.storage.thirdparty.remote import Partners, for_hop, parse, redirected, transfer_headers
from services.storage.thirdparty.wire import Answer

POLICY = AddressPolicy(INTERNAL_NETWORKS, [])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:0a00:1::",
        "2001:0:5db8:d822::80ff:fffe",
        "fe80::1%eth0",
        "nonsense",
        "",
        "127.1",
    ],
)
def test_denied(address: str) -> None:
    assert not POLICY.permits(address)


@pytest.mark.parametrize(
    "address",
    ["188.184.1.1", "2001:1458::1", "::ffff:188.184.1.1", "64:ff9b::bcb8:101", "2002:bcb8:101::1"],
)
def test_permitted(address: str) -> None:
    assert POLICY.permits(address)


def test_exceptions() -> None:
    policy = AddressPolicy(INTERNAL_NETWORKS, ["10.20.0.0/16"])
    assert policy.permits("10.20.1.1")
    assert policy.permits("::ffff:10.20.1.1")
    assert not policy.permits("10.21.1.1")


@given(st.ip_addresses(v=4))
def test_mapped_addresses_fare_like_what_they_carry(address: object) -> None:
    assert POLICY.permits(f"::ffff:{address}") is POLICY.permits(str(address))


def test_urls() -> None:
    remote = parse("davs://Host.Example.org:8443/a%20b?sig=x")
    assert (remote.scheme, remote.host, remote.port) == ("https", "host.example.org", 8443)
    assert remote.target == "/a%20b?sig=x"
    assert remote.shown == "https://host.example.org:8443/a%20b"
    assert parse("https://h").authority == "h"
    assert parse("https://[::1]:1/").authority == "[::1]:1"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/local",
        "ftp://h/x",
        "file:///etc/passwd",
        "https://u:p@h/x",
        "https://h:x/",
        "https:///x",
        "https://h/a b",
        "https://h/\r\nX: y",
        "https://h%00/",
        "gopher://h",
        "https://[::1/x",
    ],
)
def test_urls_refused(url: str) -> None:
    with pytest.raises(BadRequest):
        parse(url)


def test_partners() -> None:
    partners = Partners(["*.cern.ch", "dav.example.org"], plain_http=False)
    partners.check(parse("https://eos.CERN.ch/x"))
    partners.check(parse("https://dav.example.org:9/x"))
    for url in ("https://cern.ch/", "https://evil.org/", "https://cern.ch.evil.org/", "http://eos.cern.ch/"):
        with pytest.raises(Denied):
            partners.check(parse(url))


def test_transfer_headers() -> None:
    found = transfer_headers(
        [
            ("TransferHeaderAuthorization", "bearer abc"),
            ("transferheaderX-Other", "1"),
            ("TransferHeaderHost", "evil"),
            ("TransferHeaderContent-Length", "1"),
            ("Authorization", "Bearer own"),
        ]
    )
    assert found == {"Authorization": "Bearer abc", "X-Other": "1"}
    for name, value in (("TransferHeaderA B", "x"), ("TransferHeaderX", "a\r\nb")):
        with pytest.raises(BadRequest):
            transfer_headers([(name, value)])


def test_redirects() -> None:
    first = parse("https://a.org/x/y?q=1")
    assert redirected(first, "../z").target == "/z"
    assert redirected(first, "//b.org/p").host == "b.org"
    with pytest.raises(Denied):
        redirected(first, "http://a.org/x")
    headers = {"Authorization": "Bearer t"}
    assert for_hop(headers, first, redirected(first, "/other")) == headers
    for elsewhere in ("https://b.org/", "https://a.org:444/"):
        assert for_hop(headers, first, redirected(first, elsewhere)) == {}


def test_sources() -> None:
    known = source_of(Answer(200, "OK", {"content-length": "5", "etag": '"e"', "digest": "adler32=91e01de"}))
    assert (known.size, known.etag, known.ranges) == (5, '"e"', False)
    assert known.digests == {"adler32": bytes.fromhex("091e01de")}
    for digest in ("adler32=", "adler32=zz", ""):
        assert not source_of(Answer(200, "OK", {"digest": digest})).digests


def test_markers() -> None:
    progress = Progress(7, connections={"tcp:1.2.3.4:443"})
    assert marker(progress, 12.7) == (
        b"Perf Marker\nTimestamp: 12\nStripe Index: 0\nStripe Bytes Transferred: 7\n"
        b"Total Stripe Count: 1\nRemoteConnections: tcp:1.2.3.4:443\nEnd\n"
    )
