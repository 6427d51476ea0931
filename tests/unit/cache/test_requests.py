"""Request heads: what is refused, what is normalised, and that nothing else ever happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache import requests
from services.cache.requests import Refused

PLAIN = b"GET http://h:8000/cvmfs/a.org/.cvmfspublished HTTP/1.1\r\nHost: h:8000\r\nAccept: */*\r\n\r\n"


def head(line: bytes = b"GET /x HTTP/1.1", *fields: bytes) -> bytes:
    return b"\r\n".join((line, *(fields or (b"Host: h",)), b"", b""))


def test_what_the_cvmfs_client_sends() -> None:
    request = requests.parse(
        b"GET http://h:8000/cvmfs/a.org/.cvmfspublished HTTP/1.1\r\nHost: h:8000\r\nAccept: */*\r\n"
        b"Proxy-Connection: Keep-Alive\r\nConnection: Keep-Alive\r\nUser-Agent: cvmfs Fuse 2.12.0\r\n\r\n"
    )
    assert (request.authority, request.path) == (b"h:8000", b"/cvmfs/a.org/.cvmfspublished")
    assert request.fields.plain


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head(b"GET /x HTTP/1.1", b"Host: a", b"Host: b"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a", b"Host: a"), 400),
        (head(b"GET /x HTTP/1.1", b"Accept: */*"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a", b"Content-Length: 5"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a", b"Content-Length: 5", b"Content-Length: 6"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a", b"Content-Length: +0"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a", b"Transfer-Encoding: chunked"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a", b"Transfer-Encoding: xchunked"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a", b"Content-Length: 0", b"Transfer-Encoding: chunked"), 400),
        (head(b"GET /x HTTP/1.0", b"Host: a", b"Transfer-Encoding: chunked"), 400),
        (head(b"GET /x HTTP/1.1", b"Host : a"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a", b" folded"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a\x00b"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a@b"), 400),
        (head(b"GET /x HTTP/1.1", b"Host: a/b"), 400),
        (head(b"GET /x\x01 HTTP/1.1"), 400),
        (head(b"GET /x y HTTP/1.1"), 400),
        (head(b"GET /x#f HTTP/1.1"), 400),
        (head(b"GET /a/../b HTTP/1.1"), 400),
        (head(b"GET /a/%2e%2E/b HTTP/1.1"), 400),
        (head(b"GET /a/. HTTP/1.1"), 400),
        (head(b"GET http://user@h/x HTTP/1.1"), 400),
        (head(b"GET http://h:999999/x HTTP/1.1"), 400),
        (head(b"GET https://h/x HTTP/1.1"), 403),
        (head(b"GET file:///etc/passwd HTTP/1.1"), 403),
        (head(b"CONNECT h:443 HTTP/1.1"), 403),
        (head(b"POST /x HTTP/1.1"), 405),
        (head(b"PURGE /x HTTP/1.1"), 405),
        (head(b"GET /x HTTP/2.0"), 400),
        (head(b"GET /x HTTP/0.9"), 400),
        (head(b"GET  /x HTTP/1.1"), 400),
        (head(b"get /x HTTP/1.1"), 400),
        (b"\r\n" + head(), 400),
        (b"GET /x HTTP/1.1\nHost: a\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
        (head(b"GET /x HTTP/1.1", b"Host: a", *(b"X-%d: y" % i for i in range(200))), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    ],
)
def test_what_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(Refused) as refusal:
        requests.parse(data)
    assert refusal.value.status == status


@pytest.mark.parametrize(
    ("target", "authority", "path"),
    [
        (b"http://STRATUM.Example.org:80/a?b=c", b"stratum.example.org", b"/a?b=c"),
        (b"HTTP://h:8000", b"h:8000", b"/"),
        (b"http://[::1]:8000/a", b"[::1]:8000", b"/a"),
        (b"/a%20b?q=../..", b"", b"/a%20b?q=../.."),
    ],
)
def test_what_is_normalised(target: bytes, authority: bytes, path: bytes) -> None:
    request = requests.parse(head(b"GET " + target + b" HTTP/1.1", b"Host: liar.example.org"))
    assert (request.authority, request.path) == (authority, path)


@pytest.mark.parametrize(
    ("version", "fields", "keep"),
    [
        (b"1.1", (), True),
        (b"1.1", (b"Connection: close",), False),
        (b"1.0", (), False),
        (b"1.0", (b"Connection: Keep-Alive",), True),
        (b"1.0", (b"Proxy-Connection: keep-alive",), True),
    ],
)
def test_who_keeps_the_connection(version: bytes, fields: tuple[bytes, ...], keep: bool) -> None:
    request = requests.parse(head(b"GET /x HTTP/" + version, b"Host: h", *fields))
    assert request.fields.keep_alive is keep


@pytest.mark.parametrize(
    "field",
    [
        b"Range: bytes=0-1",
        b"Cache-Control: no-cache",
        b"Cookie: a=b",
        b"If-None-Match: x",
        b"Connection: close",
    ],
)
def test_what_changes_the_answer_is_not_plain(field: bytes) -> None:
    assert not requests.parse(head(b"GET /x HTTP/1.1", b"Host: h", field)).fields.plain


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for whole in (data + b"\r\n\r\n", b"GET /" + data + b" HTTP/1.1\r\nHost: h\r\n\r\n"):
        try:
            request = requests.parse(whole)
        except Refused:
            continue
        assert request.path.startswith(b"/")


@given(st.data())
def test_a_mutated_good_request_is_parsed_or_refused(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(PLAIN) - 5))
    piece = data.draw(st.binary(min_size=0, max_size=6))
    mutated = PLAIN[:place] + piece + PLAIN[place + data.draw(st.integers(0, 4)) :]
    try:
        request = requests.parse(mutated if mutated.endswith(b"\r\n\r\n") else mutated + b"\r\n\r\n")
    except Refused:
        return
    assert b"\r" not in request.path and b"\n" not in request.path and b" " not in request.path
