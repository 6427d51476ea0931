"""Heads: what we read ourselves is what aiohttp would have read, and what could be read otherwise is not ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.http.head import Head, parse

PLAIN = b"GET /cms/file HTTP/1.1\r\nHost: edge\r\nAuthorization: Bearer x.y.z\r\n\r\n"


def _with(*fields: bytes, line: bytes = b"PUT /f HTTP/1.1", host: bytes = b"Host: e\r\n") -> bytes:
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def test_a_plain_head_is_read() -> None:
    head = parse(PLAIN)
    assert head == Head(
        "GET", "/cms/file", 1, (("Host", "edge"), ("Authorization", "Bearer x.y.z")), None, False, True
    )
    assert head.bodiless


@pytest.mark.parametrize(
    ("data", "length", "chunked", "keep_alive"),
    [
        (_with(b"Content-Length: 0"), 0, False, True),
        (_with(b"content-length:  123456789012 "), 123456789012, False, True),
        (_with(b"Transfer-Encoding: Chunked"), None, True, True),
        (_with(b"Connection: close"), None, False, False),
        (_with(b"Connection: Keep-Alive"), None, False, True),
        (_with(b"Connection: TE, Keep-Alive", b"TE: trailers"), None, False, True),
        (_with(line=b"GET / HTTP/1.0"), None, False, False),
        (_with(b"Connection: keep-alive", line=b"GET / HTTP/1.0"), None, False, True),
        (_with(b"Expect: 100-Continue", b"Content-Length: 5"), 5, False, True),
        (_with(b"X-Empty:", b"X-Tab:\ta\tb\t"), None, False, True),
    ],
)
def test_how_long_the_body_is_and_what_follows(
    data: bytes, length: int | None, chunked: bool, keep_alive: bool
) -> None:
    head = parse(data)
    assert head is not None
    assert (head.length, head.chunked, head.keep_alive) == (length, chunked, keep_alive)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"\r\n" + PLAIN,
        PLAIN[:-2],
        PLAIN.replace(b"\r\n", b"\n"),
        PLAIN.replace(b"edge\r\n", b"edge\n"),
        PLAIN.replace(b"edge\r\n", b"edge\r"),
        _with(b"X: a\rb"),
        _with(b"X: a\x00b"),
        _with(b"X: a\x0bb"),
        _with(b"X: a\x7fb"),
        _with(b"X: \xc3\xa9"),
        _with(b" folded: x"),
        _with(b"X: a", b" folded"),
        _with(b"X: a", b"\tfolded"),
        _with(b"X : a"),
        _with(b"X\t: a"),
        _with(b": a"),
        _with(b"no colon"),
        _with(b"X(y): a"),
        _with(b"Content-Length: 5", b"Content-Length: 5"),
        _with(b"Content-Length: 5", b"Content-Length: 6"),
        _with(b"Content-Length: 5, 5"),
        _with(b"Content-Length: +5"),
        _with(b"Content-Length: -5"),
        _with(b"Content-Length: 0x5"),
        _with(b"Content-Length: 05"),
        _with(b"Content-Length: 5_0"),
        _with(b"Content-Length: 5 0"),
        _with(b"Content-Length:"),
        _with(b"Content-Length: 1234567890123456789"),
        _with(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        _with(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        _with(b"Transfer-Encoding: gzip, chunked"),
        _with(b"Transfer-Encoding: chunked, identity"),
        _with(b"Transfer-Encoding: identity"),
        _with(b"Transfer-Encoding: xchunked"),
        _with(b"Transfer-Encoding: \x0bchunked"),
        _with(b"Transfer-Encoding: chunked", line=b"PUT / HTTP/1.0"),
        _with(b"Trailer: X"),
        _with(b"Upgrade: h2c"),
        _with(b"Connection: upgrade"),
        _with(b"Connection: close, keep-alive"),
        _with(b"Connection: close", b"Connection: keep-alive"),
        _with(b"Expect: something"),
        _with(b"Expect: 100-continue", line=b"PUT / HTTP/1.0"),
        _with(host=b""),
        _with(host=b"Host:\r\n"),
        _with(b"Host: other"),
        _with(line=b"GET http://edge/f HTTP/1.1"),
        _with(line=b"OPTIONS * HTTP/1.1"),
        _with(line=b"CONNECT edge:443 HTTP/1.1"),
        _with(line=b"GET  /f HTTP/1.1"),
        _with(line=b"GET /f  HTTP/1.1"),
        _with(line=b"GET /f HTTP/1.1 "),
        _with(line=b" GET /f HTTP/1.1"),
        _with(line=b"GET\t/f HTTP/1.1"),
        _with(line=b"GET /a b HTTP/1.1"),
        _with(line=b"GET /f#part HTTP/1.1"),
        _with(line=b"GET /\x01 HTTP/1.1"),
        _with(line=b"GET /\xff HTTP/1.1"),
        _with(line=b"get /f HTTP/1.1"),
        _with(line=b"GET /f HTTP/1.2"),
        _with(line=b"GET /f HTTP/2.0"),
        _with(line=b"GET /f http/1.1"),
        _with(line=b"GET /f"),
        _with(line=b"GET /" + b"f" * 8190 + b" HTTP/1.1"),
        _with(*[b"X-%d: y" % number for number in range(200)]),
    ],
)
def test_what_two_readers_could_understand_differently_is_not_ours(data: bytes) -> None:
    assert parse(data) is None


# --- beside aiohttp


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    found = asyncio.new_event_loop()
    yield found
    found.close()


def _by_aiohttp(loop: asyncio.AbstractEventLoop, data: bytes) -> tuple[RawRequestMessage, bytes] | None:
    """What aiohttp makes of a head, and the body it sees in what follows; None: it refuses."""
    protocol = BaseProtocol(loop)
    parser = HttpRequestParser(
        protocol, loop, 2**16, max_line_size=8190, max_field_size=32768, max_headers=128
    )
    protocol._parser = parser
    try:
        messages, _, _ = parser.feed_data(data)
    except HttpProcessingError:
        return None
    if not messages:
        return None
    message, payload = messages[0]
    body = b"".join(payload._buffer) if hasattr(payload, "_buffer") else b""
    return message, body


_NAMES = st.sampled_from(
    [b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Host", b"Range", b"X-Any", b"TE"]
)
_VALUES = st.one_of(
    st.sampled_from([b"0", b"3", b"03", b"+3", b"3,3", b"chunked", b"Chunked", b"identity", b"close"]),
    st.sampled_from([b"keep-alive", b"100-continue", b"edge", b"bytes=0-1", b"", b"gzip, chunked"]),
    st.binary(max_size=6),
)
_SEPARATORS = st.sampled_from([b": ", b":", b" : ", b":\t", b": \r\n ", b""])
_ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"\x00\r\n"])
_FIELD = st.tuples(_NAMES, _SEPARATORS, _VALUES, _ENDS).map(b"".join)
_LINES = st.sampled_from(
    [
        b"PUT /f HTTP/1.1\r\n",
        b"GET /f?x=1 HTTP/1.1\r\n",
        b"HEAD / HTTP/1.0\r\n",
        b"GET //f HTTP/1.1\r\n",
        b"GET /f HTTP/1.1\n",
        b"PROPFIND /%2e%2e/ HTTP/1.1\r\n",
    ]
)
_HEADS = st.tuples(_LINES, st.lists(_FIELD, max_size=5).map(b"".join)).map(
    lambda parts: parts[0] + b"Host: e\r\n" + parts[1] + b"\r\n"
)


@settings(max_examples=400, deadline=None)
@given(data=_HEADS)
def test_what_is_ours_is_what_aiohttp_would_have_read(loop: asyncio.AbstractEventLoop, data: bytes) -> None:
    head = parse(data)
    if head is None:
        return
    body = b"3\r\nabc\r\n0\r\n\r\n" if head.chunked else b"x" * (head.length or 0)
    following = b"GET /following HTTP/1.1\r\nHost: e\r\n\r\n" if head.keep_alive else b""
    found = _by_aiohttp(loop, data + body + following)
    assert found is not None, "aiohttp refuses what we take"
    message, seen = found
    assert (message.method, message.path) == (head.method, head.target)
    assert (message.version.major, message.version.minor) == (1, head.minor)
    assert message.should_close != head.keep_alive
    assert message.chunked == head.chunked
    assert [(n.decode(), v.decode()) for n, v in message.raw_headers] == list(head.fields)
    assert seen == (b"abc" if head.chunked else body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    head = parse(data)
    assert head is None or data.endswith(b"\r\n\r\n")
