"""Bytes of clients and servers: heads, SOCKS, DNS, PROXY protocol, netlink."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.egress import dns
from edged.egress.wishes import Target, target_of_authority
from edged.errors import BadRequest, TooLarge
from services.egress import http, socks
from services.egress.heads import end_of, parse_answer, parse_request
from services.egress.marks import Marks
from services.egress.netd.conntrack import attributes_of, flow_of
from services.egress.relays import proxy_v1, proxy_v2

HEAD = b"CONNECT www.example.org:443 HTTP/1.1\r\nHost: www.example.org:443\r\n\r\n"


def test_a_head_ends_and_is_bounded() -> None:
    assert end_of(HEAD + b"early", 1000) == len(HEAD)
    assert end_of(HEAD[:-1], 1000) == -1
    with pytest.raises(TooLarge):
        end_of(b"a" * 100, 100)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("www.Example.org.:443", Target("www.example.org", None, 443)),
        ("192.0.2.1:80", Target("", ipaddress.ip_address("192.0.2.1"), 80)),
        ("[2001:db8::1]:80", Target("", ipaddress.ip_address("2001:db8::1"), 80)),
        ("[::ffff:192.0.2.1]:80", Target("", ipaddress.ip_address("192.0.2.1"), 80)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert target_of_authority(text) == target


@pytest.mark.parametrize(
    "text",
    ["127.1:80", "0x7f.1:80", "1.2.3.0x4:80", "017700000001:80", "a b:80", "a:0", "a:65536", "a", ":80",
     "[::1:80", "-a.org:80", "a..b:80", "a:8 0", "a:٣", "[fe80::1%eth0:80", "a/b:80", "u@a:80"],
)  # fmt: skip
def test_no_targets(text: str) -> None:
    with pytest.raises(BadRequest):
        target_of_authority(text)


@given(st.binary(max_size=300))
def test_heads_never_surprise(data: bytes) -> None:
    with contextlib.suppress(BadRequest):
        head = parse_request(data + b"\r\n\r\n")
        with contextlib.suppress(BadRequest):
            http.credentials_of(head)
        with contextlib.suppress(BadRequest):
            http.connect_target(head)
        again = http.forward_of(head, "edged-T").head
        assert again.count(b"\r\n\r\n") == 1 and again.endswith(b"\r\n\r\n")
        assert parse_request(again).target.startswith("/")


@given(st.binary(max_size=64))
def test_socks_never_surprises(data: bytes) -> None:
    for parse in (socks.parse_greeting, socks.parse_login, socks.parse_request):
        with contextlib.suppress(BadRequest):
            parsed = parse(data)
            assert parsed is None or 0 < parsed[1] <= len(data)


def test_credentials_are_a_job_and_its_token() -> None:
    head = parse_request(HEAD[:-2] + b"Proxy-Authorization: Basic am9iJTJGMTp0OmU=\r\n\r\n")
    found = http.credentials_of(head)
    assert found is not None and (found.job, found.token) == ("job/1", "t:e")


def test_answers_lose_what_is_between_hops() -> None:
    head = parse_answer(
        b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    told = http.answer_for_client(head, "edged-T")
    assert b"transfer-encoding: chunked" in told and b"x-hop" not in told and b"via: 1.1 edged-T" in told


def answer(
    number: int, records: bytes, count: int, name: str = "a.example.org", flags: int = 0x8180
) -> bytes:
    question = dns.query(number, name, dns.Type.A)[12:-11]
    return (
        (
            number.to_bytes(2, "big")
            + flags.to_bytes(2, "big")
            + b"\0\1"
            + count.to_bytes(2, "big")
            + b"\0\0\0\0"
        )
        + question
        + records
    )


A_RECORD = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1"


def test_dns_answer_of_this_question_only() -> None:
    found = dns.parse(answer(7, A_RECORD, 1), 7, "a.example.org", dns.Type.A)
    assert found == dns.Answer((ipaddress.IPv4Address("192.0.2.1"),), 60)
    for number, name in ((8, "a.example.org"), (7, "b.example.org")):
        with pytest.raises(BadRequest):
            dns.parse(answer(7, A_RECORD, 1), number, name, dns.Type.A)


def test_dns_follows_aliases_and_ignores_strangers() -> None:
    alias = b"\xc0\x0c\0\5\0\1\0\0\0\x0a\0\4\1c\xc0\x0e"  # a.example.org → c.example.org
    of_alias = b"\1c\xc0\x0e\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\2"
    stranger = b"\1x\xc0\x0e\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1"
    found = dns.parse(answer(7, alias + of_alias + stranger, 3), 7, "a.example.org", dns.Type.A)
    assert found == dns.Answer((ipaddress.IPv4Address("192.0.2.2"),), 10)


@given(st.binary(max_size=200))
def test_dns_never_surprises(data: bytes) -> None:
    for message in (data, answer(7, data, 2)):
        with contextlib.suppress(BadRequest):
            dns.parse(message, 7, "a.example.org", dns.Type.A)


def test_a_name_that_points_at_itself_ends() -> None:
    with pytest.raises(BadRequest):
        dns.parse(answer(7, b"\xc0\x1f" * 4, 1), 7, "a.example.org", dns.Type.A)


def test_proxy_protocol() -> None:
    assert proxy_v1(("10.0.0.1", 5), ("10.0.0.2", 6)) == b"PROXY TCP4 10.0.0.1 10.0.0.2 5 6\r\n"
    two = proxy_v2(("2001:db8::1", 5), ("2001:db8::2", 6))
    assert two[:14] == b"\r\n\r\n\0\r\nQUIT\n\x21\x21" and len(two) == 16 + 36


def test_marks_only_from_roots_ports() -> None:
    marks, node = Marks(), ipaddress.ip_address("10.0.0.5")
    assert marks.tell("PUT", "/.edged/marks/42?job=77&account=cmsprd", node, 40000) is not None
    assert marks.of(node, 42) is None
    assert marks.tell("PUT", "/.edged/marks/42?job=77&account=cmsprd", node, 700) is None
    found = marks.of(node, 42)
    assert found is not None and (found.job, found.account) == ("77", "cmsprd")
    assert marks.tell("PUT", "/.edged/marks/64?job=77", node, 700) is not None
    assert marks.tell("DELETE", "/.edged/marks/42", node, 700) is None
    assert marks.of(node, 42) is None


@given(st.binary(max_size=200))
def test_netlink_never_surprises(data: bytes) -> None:
    list(attributes_of(data))
    with contextlib.suppress(ValueError):
        flow_of(data)
