"""The proxy's way out: which paths name which places, and what the policy says of each question."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import config
from edged.errors import BadRequest
from services.storage.xrootd.passage import Passage, target_in

NODE, OTHER, STRANGER = "::ffff:10.77.0.2", "[::ffff:10.78.0.2]", "192.0.2.9"
FAR = "198.51.100.2"
PLACES = {
    "/root:/far.example.org:1094/store/f": "far.example.org:1094",
    "/roots:/far.example.org/store/f": "far.example.org:1094",
    "/xroot:/FAR.Example.ORG:1/f": "far.example.org:1",
    "/xroots:/198.51.100.2:1094/f": "198.51.100.2:1094",
    "/root:/[::ffff:198.51.100.2]:1094/f": "198.51.100.2:1094",
    "/root:/[2001:db8::1]/f": "[2001:db8::1]:1094",
    "/root:/one.example.org/root:/two.example.org/f": "one.example.org:1094",
    "/root:/far.example.org": "far.example.org:1094",
}
NO_PLACES = [
    "", "/", "/root:", "/root:/", "/root://f", "root:/far.example.org/f", "/http:/far.example.org/f",
    "/file:/localhost/etc/passwd", "/root:/user@far.example.org/f", "/root:/u:p@far.example.org/f",
    "/root:/far.example.org:1094:1094/f", "/root:/far.example.org:0/f", "/root:/far.example.org:65536/f",
    "/root:/far.example.org:1e3/f", "/root:/127.1/f", "/root:/2130706433/f", "/root:/0x7f000001/f",
    "/root:/[::1/f", "/root:/[::1%lo]x/f", "/root:/far example.org/f", "/root:/far.example.org\n/f",
    "/root:/" + "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize(("path", "place"), PLACES.items())
def test_a_path_names_a_place(path: str, place: str) -> None:
    assert str(target_in(path)) == place


@pytest.mark.parametrize("path", NO_PLACES)
def test_no_place(path: str) -> None:
    with pytest.raises(BadRequest):
        target_in(path)


@given(st.text(max_size=60))
def test_any_text_is_a_place_or_refused(text: str) -> None:
    try:
        place = target_in(f"/root:/{text}")
    except BadRequest:
        return
    assert "@" not in str(place) and 0 < place.port <= 65535


@asynccontextmanager
async def passage(**proxy: Any) -> AsyncIterator[Passage]:
    tree = {
        "site": {"name": "TEST", "host": "edge.example.org"},
        "tls": {"certificate": "/cert", "key": "/key"},
        "storage": {"xrootd": {"proxy": {"cache": "/var/cache/pfc", **proxy}}},
        "egress": {
            "resolvers": ["127.0.0.1:9"],
            "source": [
                {"name": "nodes", "networks": ["10.77.0.0/24"]},
                {"name": "others", "networks": ["10.78.0.0/24"]},
                {"name": "token", "networks": ["10.79.0.0/24"], "require_token": True},
            ],
            "destination": [
                {"name": "far", "networks": [f"{FAR}/32"], "ports": [1094]},
                {"name": "secret", "networks": ["198.51.100.0/24"], "ports": [1094]},
                {"name": "everything", "networks": ["0.0.0.0/0"], "ports": [1094]},
            ],
            "rule": [
                {"name": "first", "to": ["far"]},
                {"name": "no", "to": ["secret"], "action": "refuse"},
                {"name": "all", "to": ["everything"], "sources": ["others"]},
            ],
        },
    }
    made = Passage(config.parse(tree), own=frozenset([ipaddress.ip_address("203.0.113.1")]))
    try:
        yield made
    finally:
        await made.aclose()


ANSWERS = [
    (f"open {NODE} /root:/{FAR}/f", True),
    (f"open {OTHER} /root:/{FAR}/f", True),
    (f"open {OTHER} /root:/203.0.113.7/f", True),
    (f"open {NODE} /root:/203.0.113.7/f", False),
    (f"open {OTHER} /root:/198.51.100.3/f", False),  # a refusing rule comes first
    (f"open {OTHER} /root:/203.0.113.1/f", False),  # this machine
    (f"open {OTHER} /root:/[::ffff:127.0.0.1]/f", False),
    (f"open {NODE} /root:/{FAR}:1095/f", False),
    (f"open {STRANGER} /root:/{FAR}/f", False),
    (f"open 10.79.0.1 /root:/{FAR}/f", False),
    (f"open  /root:/{FAR}/f", False),
    (f"open x /root:/{FAR}/f", False),
    (f"connect {FAR} 1094", True),
    (f"connect ::ffff:{FAR} 1094", True),
    ("connect 203.0.113.7 1094", True),  # the others may, so the server may
    (f"connect {FAR} 22", False),
    ("connect 127.0.0.1 1094", False),
    ("connect 203.0.113.1 1094", False),
    ("connect far.example.org 1094", False),
    ("connect  ", False),
    ("connect 1.2.3.4 x", False),
    ("name 127.0.0.1", False),
    ("name ", False),
    ("name nobody.example.org", False),  # no DNS answers
    ("else 1", False),
    ("", False),
]


@pytest.mark.parametrize(("question", "yes"), ANSWERS)
async def test_answers(question: str, yes: bool) -> None:
    async with passage() as judge:
        said = await judge.answer(question)
    assert said.startswith(b"ok") is yes, said


async def test_a_proxy_of_one_source() -> None:
    async with passage(source="nodes") as judge:
        assert (await judge.answer(f"open {NODE} /root:/{FAR}/f")).startswith(b"ok")
        assert not (await judge.answer(f"open {OTHER} /root:/{FAR}/f")).startswith(b"ok")
        assert not (await judge.answer("connect 203.0.113.7 1094")).startswith(b"ok")
